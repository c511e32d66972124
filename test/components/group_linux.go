package components

import "syscall"

// ownGroup puts a child into a process group of its own, and has it end with this process however that ends.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
