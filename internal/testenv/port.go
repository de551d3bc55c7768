package testenv

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
)

// errNoPort means that no port of the range could be bound.
var errNoPort = errors.New("find a free loopback port: none between 20000 and 30000")

// FreePort picks a free port below the ephemeral range of every system. A port
// inside the range could be given to an outgoing connection while its server is
// down in a crash test, even to the connection that tries to reach the server
// (a TCP self-connect), and the server could not restart.
func FreePort() (int, error) {
	const first, count, tries = 20000, 10000, 200
	for range tries {
		port := first + rand.IntN(count)
		ln, err := net.Listen("tcp", Loopback(port))
		if err != nil {
			continue
		}
		if err := ln.Close(); err != nil {
			return 0, err
		}
		return port, nil
	}
	return 0, errNoPort
}

// Loopback returns host:port of a port on this machine.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
