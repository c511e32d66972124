package blobstore

import (
	"os"
	"strings"
	"sync"
)

// BootID is another one after each start of the machine, "" where the system does not say. What was written
// but not synced before a restart of the machine may have holes that no size shows, so states that vouch
// for such bytes carry it.
var BootID = sync.OnceValue(func() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
})
