package doctor

import "context"

// checkClock warns of a clock that nobody keeps right.
func checkClock(context.Context, *machine) ([]finding, error) {
	synchronised, err := clockIsSynchronised()
	if err != nil {
		return nil, err
	}
	return judgeClock(synchronised), nil
}

func judgeClock(synchronised bool) []finding {
	if synchronised {
		return newFact("synchronised")
	}
	return newWarning("this machine's clock", "no time service keeps it right", "campaigns start and end by it; sink.clock shows the difference to Postgres", "timedatectl set-ntp true")
}
