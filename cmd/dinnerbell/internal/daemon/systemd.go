package daemon

import (
	"context"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"dinnerbell/cmd/dinnerbell/internal/logging"
)

// notifySystemd reports to the service manager, where there is one ($NOTIFY_SOCKET,
// see sd_notify(3)): READY once HTTP and the socket answer, whatever the first
// snapshot takes; each second the readiness as STATUS, and a sign of life for the
// watchdog; STOPPING when the daemon begins to drain. A process that cannot read its
// own status any more gives no sign of life, and systemd restarts it.
func (s *supervisor) notifySystemd(ctx context.Context) error {
	notify := func(state string) bool {
		sent, err := systemd.SdNotify(false, state)
		if err != nil {
			s.Logger.Warn("systemd does not take a message", "error", err)
		}
		return sent
	}
	if !notify(systemd.SdNotifyReady) {
		return nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		r := s.statusReport()
		state := "ready"
		if !r.Ready {
			state = "not ready: " + logging.Line(strings.Join(r.Reasons, "; "))
		}
		notify("STATUS=" + state + "\n" + systemd.SdNotifyWatchdog)
		select {
		case <-ctx.Done():
			notify(systemd.SdNotifyStopping)
			return nil
		case <-tick.C:
		}
	}
}
