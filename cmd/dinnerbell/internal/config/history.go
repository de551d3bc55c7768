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

// Age is a duration of a hundred years at most.
type Age time.Duration

// maxAge bounds the durations of ParseDuration: a hundred years.
const maxAge = 100 * 365 * 24 * time.Hour

// longUnits are the units that [time.ParseDuration] does not know, the longest first.
var longUnits = []struct {
	name string
	unit time.Duration
}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}}

// ParseDuration reads a duration that is not negative: weeks and days before what
// [time.ParseDuration] reads, such as 1w, 7d, 1d12h and 90m. It takes every duration of the
// configuration and of the command line.
func ParseDuration(text string) (time.Duration, error) {
	wrong := fmt.Errorf("%q is not a duration such as 30s, 90m, 12h or 7d", Excerpt(text))
	rest, sum, long := strings.TrimSpace(text), time.Duration(0), false
	for _, u := range longUnits {
		number, after, found := strings.Cut(rest, u.name)
		if !found {
			continue
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil || !(n >= 0 && n <= float64(maxAge/u.unit)) {
			return 0, wrong
		}
		rest, sum, long = strings.TrimSpace(after), sum+time.Duration(n*float64(u.unit)), true
	}
	if rest != "" || !long {
		more, err := time.ParseDuration(rest)
		if err != nil || more < 0 || more > maxAge {
			return 0, wrong
		}
		sum += more
	}
	return sum, nil
}

// Excerpt is the begin of a text that a message repeats.
func Excerpt(text string) string {
	const most = 40
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
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
