package registry

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// Would catch manifests on their way in that take memory without end, and room that is never given back.
func TestBudget(t *testing.T) {
	t.Parallel()
	b := &budget{limit: 10}
	for range 3 {
		first, release := b.reader(strings.NewReader("1234567"))
		if text, err := io.ReadAll(first); err != nil || string(text) != "1234567" {
			t.Fatalf("%q %v", text, err)
		}
		second, releaseSecond := b.reader(strings.NewReader("7654321"))
		if _, err := io.ReadAll(second); !errors.Is(err, errNoRoom) {
			t.Errorf("no room is left, and %v", err)
		}
		releaseSecond()
		release()
	}
	if b.used.Load() != 0 {
		t.Errorf("%d bytes are never given back", b.used.Load())
	}
}
