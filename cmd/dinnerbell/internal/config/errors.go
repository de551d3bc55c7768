package config

import "errors"

var (
	// ErrInvalid is wrapped by every error of this package: only a change of the
	// configuration helps.
	ErrInvalid = errors.New("invalid configuration")
	// ErrNotAvailable is wrapped where something is asked for that this version cannot
	// do.
	ErrNotAvailable = errors.New("not available in this version")
)
