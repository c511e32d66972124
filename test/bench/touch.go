package main

import (
	"os"
	"syscall"
	"time"
)

// touchedBytes is more than the pages that the pushes use at a time.
const touchedBytes = 4 << 30

// touchMemory uses memory and gives it back, twice, and says what each time cost. The host of a virtual machine gives
// memory at its first use, which can cost ten times what is done with it: whichever server's files came to lie
// there would pay.
func touchMemory() (first, again time.Duration, err error) {
	m, err := syscall.Mmap(-1, 0, touchedBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return 0, 0, err
	}
	times := [2]time.Duration{}
	for round := range times {
		start := time.Now()
		for i := 0; i < len(m); i += os.Getpagesize() {
			m[i]++
		}
		times[round] = time.Since(start)
	}
	return times[0], times[1], syscall.Munmap(m)
}
