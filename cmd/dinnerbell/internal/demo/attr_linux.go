package demo

import "syscall"

// childAttr gives a child a process group, and a SIGTERM when the demo dies.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
