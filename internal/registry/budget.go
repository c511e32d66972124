package registry

import (
	"errors"
	"io"
	"sync/atomic"
)

// manifestsInFlight bounds the bytes of all manifests that are on their way in. One has at most 8 MiB, most have some
// kilobytes.
const manifestsInFlight = 64 << 20

var errNoRoom = errors.New("too many manifests are being pushed")

// budget is a number of bytes that requests share.
type budget struct {
	used  atomic.Int64
	limit int64
}

// reader takes from the budget what is read through it, until release gives it back. Over the budget it fails with
// errNoRoom, at once: who waited would keep what they have from others who wait.
func (b *budget) reader(r io.Reader) (limited io.Reader, release func()) {
	t := &taking{from: r, budget: b}
	return t, func() { b.used.Add(-t.taken) }
}

type taking struct {
	from   io.Reader
	budget *budget
	taken  int64
}

func (t *taking) Read(p []byte) (int, error) {
	n, err := t.from.Read(p)
	t.taken += int64(n)
	if t.budget.used.Add(int64(n)) > t.budget.limit {
		return 0, errNoRoom
	}
	return n, err
}
