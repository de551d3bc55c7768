package hostile

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
)

// Message returns a message of Postgres: type, length, body.
func Message(kind byte, body string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
}

// Claim returns the head of a message that claims a body of n bytes.
func Claim(kind byte, n int) []byte {
	return binary.BigEndian.AppendUint32([]byte{kind}, uint32(n+4))
}

// LetIn lets a client in without a password.
var LetIn = append(Message('R', "\x00\x00\x00\x00"), Message('Z', "I")...)

// Notices returns 64 notices at each call.
func Notices() func() []byte {
	notice := Message('N', "SWARNING\x00VWARNING\x00C01000\x00M"+strings.Repeat("x", 1000)+"\x00\x00")
	return func() (out []byte) {
		for range 64 {
			out = append(out, notice...)
		}
		return out
	}
}

// Parameters returns 64 reports of other parameters at each call.
func Parameters() func() []byte {
	n := 0
	return func() (out []byte) {
		for range 64 {
			n++
			out = append(out, Message('S', fmt.Sprintf("p%d\x00%s\x00", n, strings.Repeat("x", 1000)))...)
		}
		return out
	}
}

// Rows returns 64 rows of one column at each call, behind none of which a result ends.
func Rows() func() []byte {
	row := Message('D', "\x00\x01\x00\x00\x03\xe8"+strings.Repeat("x", 1000))
	return func() (out []byte) {
		for range 64 {
			out = append(out, row...)
		}
		return out
	}
}

// Scram returns what asks a client for a password with SCRAM-SHA-256, and for this much
// work.
func Scram(iterations int) func(net.Conn) {
	return func(c net.Conn) {
		if !readSome(c) {
			return
		}
		_, _ = c.Write(Message('R', "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"))
		first := make([]byte, 8<<10)
		n, err := c.Read(first)
		if err != nil {
			return
		}
		_, nonce, _ := strings.Cut(string(first[:n]), "r=")
		_, _ = c.Write(Message('R', fmt.Sprintf("\x00\x00\x00\x0br=%smore,s=c2FsdA==,i=%d", nonce, iterations)))
		Silence(c)
	}
}
