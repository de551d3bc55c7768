package main

import "syscall"

// childAttr gives a child a process group, and a SIGKILL when this program
// dies: nothing is left that would disturb the next run.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
