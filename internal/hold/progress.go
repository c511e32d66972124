package hold

import (
	"os"
	"sync"
	"time"
)

// progressEvery is how often a command that takes long says that it goes on.
const progressEvery = 3 * time.Second

// serial makes tell one that several goroutines may call.
func serial(tell say) say {
	var mu sync.Mutex
	return func(l Line) {
		mu.Lock()
		defer mu.Unlock()
		tell(l)
	}
}

// working tells what is being done, and every now and then that it goes on, for how long, and what has come of it,
// where so says that; until the function that it returns is called.
func (tell say) working(every time.Duration, what string, so func() string) (end func()) {
	start, stop := time.Now(), make(chan struct{})
	tell(Line{Text: what + " …"})
	var ticking sync.WaitGroup
	ticking.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			text := what + " … " + time.Since(start).Round(time.Second).String()
			if so != nil {
				text += ", " + so()
			}
			tell(Line{Text: text})
		}
	})
	return func() { close(stop); ticking.Wait() }
}

// sizeOf says how large a file has become.
func sizeOf(path string) func() string {
	return func() string {
		var size int64 // none while there is no file
		if info, err := os.Stat(path); err == nil {
			size = info.Size()
		}
		return Bytes(size).String()
	}
}
