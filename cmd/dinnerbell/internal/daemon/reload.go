package daemon

import (
	"context"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/stream"
)

// limitsOf returns the limits of a configuration.
func limitsOf(cfg *config.Config) stream.Limits {
	return stream.Limits{MaxAudience: int64(cfg.Limits.MaxAudience), NotificationsPerSecond: int64(cfg.Limits.NotificationsPerSecond)}
}

// watchReload reads the configuration again at each signal, until ctx ends. The limits
// and log.level take effect at once.
func (s *supervisor) watchReload(ctx context.Context) error {
	for {
		select {
		case <-s.Reload:
			s.reloadConfig()
		case <-ctx.Done():
			return nil
		}
	}
}

// reloadConfig takes over what can change without a restart, and names the other keys that
// differ from the values in force. An invalid configuration changes nothing.
func (s *supervisor) reloadConfig() {
	cfg, err := s.LoadConfig()
	if err != nil {
		s.Logger.Error("the configuration was read again and is refused; all values stay as they are", "error", config.HideUserinfo(err.Error()))
		return
	}
	before := *s.Config
	limits := s.limits.Load()
	before.Limits = config.Limits{MaxAudience: int(limits.MaxAudience), NotificationsPerSecond: int(limits.NotificationsPerSecond)}
	before.Log.Level = s.level
	changed, restart := config.ChangedKeys(&before, cfg)
	next := limitsOf(cfg)
	s.limits.Store(&next)
	s.currentEngine().Service.SetLimits(next)
	s.level = cfg.Log.Level
	s.Logger.Info("the configuration was read again", "changed", changed, "max_audience", next.MaxAudience, "notifications_per_second", next.NotificationsPerSecond, "log_level", cfg.Log.Level)
	logging.SetLevel(s.Logger, cfg.Log.Level)
	if len(restart) > 0 {
		s.Logger.Warn("these keys of the configuration have changed and take effect with the next start", "keys", restart)
	}
}
