package filesystem

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeOut has the kernel write a range and waits for it. It is a hint: Commit's sync is what counts, so
// errors are left to it.
func writeOut(f *os.File, from, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), from, n, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
}
