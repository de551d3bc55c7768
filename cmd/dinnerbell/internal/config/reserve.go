package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Reserve is disk space that stays unused: a size, or a share of the file system.
// The zero value stands for the default.
type Reserve struct {
	Bytes   int64   // negative: no reserve
	Percent float64 // of the file system
}

// units of sizes, the longer ones first. MB is 10^6 bytes, MiB 2^20.
var units = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

// parseReserve reads 512MB, 2GiB, 5% or 0, which turns the reserve off.
func parseReserve(text string) (Reserve, error) {
	text = strings.TrimSpace(text)
	wrong := fmt.Errorf("%q is none of 512MB, 2GiB, 5%% and 0", text)
	if share, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(strings.TrimSpace(share), 64)
		if err != nil || !(p >= 0 && p < 100) {
			return Reserve{}, wrong
		}
		if p == 0 {
			return Reserve{Bytes: -1}, nil
		}
		return Reserve{Percent: p}, nil
	}
	n, err := parseBytes(text)
	switch {
	case err != nil:
		return Reserve{}, wrong
	case n == 0:
		return Reserve{Bytes: -1}, nil
	}
	return Reserve{Bytes: n}, nil
}

// parseBytes reads a number with a unit, or 0.
func parseBytes(text string) (int64, error) {
	number, unit := text, 0.0
	for _, u := range units {
		if n := len(text) - len(u.name); n > 0 && strings.EqualFold(text[n:], u.name) {
			number, unit = strings.TrimSpace(text[:n]), u.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n >= 0) || n*unit > math.MaxInt64/2 || n > 0 && unit == 0 {
		return 0, fmt.Errorf("%q is not a size", text)
	}
	return int64(n * unit), nil
}
