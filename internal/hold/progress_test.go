package hold

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Would catch a long command that says nothing while it works, or goes on saying so when it has ended.
func TestWorking(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(path, make([]byte, 2000), 0o600); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1000)
	end := serial(func(l Line) { said <- l.Text }).working(time.Millisecond, "copying", sizeOf(path))
	if first := <-said; first != "copying …" {
		t.Errorf("%q", first)
	}
	if second := <-said; !strings.HasPrefix(second, "copying … 0s, 2") {
		t.Errorf("%q", second)
	}
	end()
	close(said) // a line after the end would panic
}
