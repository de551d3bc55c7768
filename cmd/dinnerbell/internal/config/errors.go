package config

import "errors"

var (
	// ErrInvalid is wrapped by every error of this package: the configuration
	// must be changed, trying again does not help.
	ErrInvalid = errors.New("invalid configuration")
	// ErrNotAvailable is wrapped, beside ErrInvalid, when a key asks for what
	// this version cannot do.
	ErrNotAvailable = errors.New("not available in this version")
)
