package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/status"
)

// askLimit bounds a question to a daemon on this machine.
const askLimit = 2 * time.Second

// askDaemon asks the daemon over the socket in its folder. No daemon is no error.
func askDaemon(ctx context.Context, dir string) (version string, answers bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	body, err := control.Get(ctx, dir, "/api/status")
	if errors.Is(err, control.ErrNoDaemon) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	var r status.Report
	if err := json.Unmarshal(body, &r); err != nil {
		return "", false, fmt.Errorf("read answer of the daemon: %w", err)
	}
	return r.Version, true, nil
}
