package main

import "syscall"

// childAttr gives a child a process group, and a SIGKILL when we die.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
