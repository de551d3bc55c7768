package takeover

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"dinnerbell/stream/sink"
)

// LaneMark is the beginning of the application_name of connections that write for a
// lane. A later owner finds them by it. Only sessions of the own role count, so no
// other role can hold a lane up or pass for its owner; an advisory lock, in contrast,
// could be taken by every role that may connect.
func (c *Claim) LaneMark() string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(c.Tables.Schema)) // never fails; one database may hold several deployments
	return fmt.Sprintf("dinnerbell %08x lane %d ", h.Sum32(), c.Lane)
}

// endPredecessors ends the connections of the lane's former owners. A connection whose
// daemon is frozen between a step's rows and its commit keeps the rows' keys locked,
// and no timeout of the server ends the connection: it is in the middle of a pipeline,
// not idle. A commit that the daemon had sent has succeeded or failed by then; the
// epoch is raised afterwards.
//
// A connection that is younger than ours stays: it belongs to an owner that takes the
// lane over from us.
func (c *Claim) endPredecessors(ctx context.Context) error {
	ended, err := sink.EndFormerOwners(ctx, c.Conn, c.LaneMark())
	if err != nil {
		return fmt.Errorf("end the former owner's connections of lane %d: %w", c.Lane, err)
	}
	if ended > 0 {
		c.Config.Logger.Info("ended connections of the lane's former owner", "lane", c.Lane, "connections", ended)
	}
	return nil
}

// ownerGone is how long the server may still show the connection of a daemon that has
// just released a lane.
const ownerGone = 3 * time.Second

// CheckNoOwner returns an error if a daemon works on the lane.
func (c *Claim) CheckNoOwner(ctx context.Context) error {
	conn, err := c.Config.Sink.Connect(ctx, "dinnerbell resolve")
	if err != nil {
		return err
	}
	defer sink.CloseConn(conn)
	for until := time.Now().Add(ownerGone); ; {
		owners, err := sink.ListOwners(ctx, conn, c.LaneMark())
		switch {
		case err != nil:
			return fmt.Errorf("look for the owner of lane %d: %w", c.Lane, err)
		case len(owners) == 0:
			return nil
		case time.Now().After(until):
			return fmt.Errorf("lane %d is owned by a daemon that runs: %s; where something is to be resolved the lane has halted; stop the daemon first if it does not answer", c.Lane, strings.Join(owners, ", "))
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
