package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// History is how much the local state remembers of the changes of subscriptions.
type History struct {
	Age  Age  `yaml:"age"`  // default 7d
	Size Size `yaml:"size"` // default 256MB, at least 1MB; 0: nothing is remembered
}

// Age is a duration that may be given in days: 7d, 12h, 1d12h.
type Age time.Duration

// parseAge reads days before what [time.ParseDuration] reads.
func parseAge(text string) (Age, error) {
	text = strings.TrimSpace(text)
	days, rest, hasDays := strings.Cut(text, "d")
	if !hasDays {
		days, rest = "0", text
	}
	n, err := strconv.ParseFloat(days, 64)
	rest = strings.TrimSpace(rest)
	var more time.Duration
	if err == nil && (rest != "" || !hasDays) {
		more, err = time.ParseDuration(rest)
	}
	const most = 100 * 365
	if err != nil || !(n >= 0 && n <= most) || more < 0 || more > most*24*time.Hour {
		return 0, fmt.Errorf("%q is none of 7d, 12h and 90m", text)
	}
	return Age(n*24*float64(time.Hour)) + Age(more), nil
}

// Size is a number of bytes.
type Size int64

// parseSize reads 256MB, 1GiB or 0.
func parseSize(text string) (Size, error) {
	n, err := parseBytes(strings.TrimSpace(text))
	if err != nil {
		return 0, fmt.Errorf("%q is none of 256MB, 1GiB and 0", text)
	}
	return Size(n), nil
}
