package filesystem

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// writeOut has the kernel write a range and waits for it. An error that says that bytes could not be written
// must be kept: the kernel counts it as told, and a later sync of the same file succeeds. Where the call
// itself is refused, Commit's sync is what counts.
func writeOut(f *os.File, from, n int64) error {
	err := unix.SyncFileRange(int(f.Fd()), from, n, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	for _, refused := range []error{unix.ENOSYS, unix.EINVAL, unix.EPERM, unix.EOPNOTSUPP, unix.ESPIPE, unix.EINTR} {
		if errors.Is(err, refused) {
			return nil
		}
	}
	return err
}
