package network

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"dinnerbell/internal/testenv/relay"
)

// loseCommit relays the server's messages one by one. When the trap is armed,
// it swallows the answer to COMMIT: the transaction is committed, and the
// client cannot know.
func loseCommit(t *answerTrap) relay.Pump {
	return func(in *bufio.Reader, out *bufio.Writer) error {
		for {
			head, err := in.Peek(5)
			if err != nil {
				return err
			}
			size := 1 + int64(binary.BigEndian.Uint32(head[1:]))
			if size < 5 {
				return fmt.Errorf("read message %q of %d bytes", head[0], size)
			}
			if head[0] == 'C' && size == int64(len("C\x00\x00\x00\x00COMMIT\x00")) {
				whole, err := in.Peek(int(size))
				if err != nil {
					return err
				}
				if string(whole[5:]) == "COMMIT\x00" && t.loseNext() {
					return errCut
				}
			}
			if _, err := io.CopyN(out, in, size); err != nil {
				return err
			}
			if err := relay.FlushIdle(in, out); err != nil {
				return err
			}
		}
	}
}
