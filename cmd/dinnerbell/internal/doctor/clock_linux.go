package doctor

import (
	"fmt"
	"syscall"
)

// timeError is the state of a clock that is not synchronised (adjtimex(2), TIME_ERROR).
const timeError = 5

// clockIsSynchronised asks the kernel, which a time service keeps informed.
func clockIsSynchronised() (bool, error) {
	state, err := syscall.Adjtimex(&syscall.Timex{})
	if err != nil {
		return false, fmt.Errorf("read the clock's state: %w", err)
	}
	return state != timeError, nil
}
