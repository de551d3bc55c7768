package topic

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/precondition"
)

// doctorChecks are the facts that stop nothing, or cost connections and requests:
// `doctor` alone reports them.
var doctorChecks = []precondition.Check[*Facts]{
	{Name: "kafka.version", At: precondition.AtDoctor, Read: checkVersion},
	{Name: "kafka.encryption", At: precondition.AtDoctor, Read: checkEncryption},
	{Name: "kafka.transactional_ids", At: precondition.AtDoctor, Read: checkTransactionalIDs},
	{Name: "kafka.id_expiration", At: precondition.AtDoctor, Read: checkExpiration},
	{Name: "kafka.downtime", At: precondition.AtDoctor, Read: checkDowntime},
}

// noTopics is a metadata request for the brokers alone.
func noTopics() *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{} // nil asks for all topics
	return req
}

// newFact returns a list of one finding that nothing is wrong with.
func newFact(format string, args ...any) []precondition.Finding {
	return []precondition.Finding{{Level: precondition.OK, Found: fmt.Sprintf(format, args...)}}
}

// showTopics describes the topics.
func (f *Facts) showTopics() string {
	var all []string
	for _, topic := range []string{f.Config.Campaigns, f.Config.Notifications, f.Config.DeadLetters, f.Config.Progress} {
		all = append(all, fmt.Sprintf("%s (%d × %d)", topic, len(f.Cluster.Topics[topic].Partitions), f.Cluster.minReplicas(topic)))
	}
	return strings.Join(all, ", ") + ": partitions × replicas"
}

// neededRequests are the requests without which lanes cannot work, with the Kafka that
// brought them.
var neededRequests = []struct {
	key           kmsg.Key
	version       int16
	since, effect string
	level         precondition.Level
}{
	{kmsg.InitProducerID, 1, "0.11", "there are no transactions, and no lane can work", precondition.Fail},
	{kmsg.EndTxn, 1, "0.11", "there are no transactions, and no lane can work", precondition.Fail},
	{kmsg.JoinGroup, 5, "2.3", "there are no static members of a group, and a restart moves the lanes", precondition.Fail},
	{kmsg.DescribeConfigs, 0, "0.11", "the settings of the topics cannot be checked", precondition.Warn},
	{kmsg.Metadata, 10, "2.8", "topics have no ids, so that a topic that was deleted and made again is not noticed by its id", precondition.Warn},
}

// checkVersion looks for the requests that the lanes need.
func checkVersion(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	all, err := f.Admin.ApiVersions(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the brokers' versions: %w", err)
	}
	var found []precondition.Finding
	versions := map[string]bool{}
	for _, b := range all.Sorted() {
		if b.Err != nil {
			continue // kafka.brokers reports it
		}
		guess := strings.TrimPrefix(b.VersionGuess(), "v")
		versions[guess] = true
		for _, need := range neededRequests {
			if most, ok := b.KeyMaxVersion(need.key.Int16()); ok && most >= need.version {
				continue
			}
			found = append(found, precondition.Finding{Level: need.level, Object: fmt.Sprintf("broker %d", b.NodeID),
				Found: fmt.Sprintf("it is like Kafka %s, without %s version %d of Kafka %s", guess, need.key.Name(), need.version, need.since), Effect: need.effect,
				Fix: "upgrade the brokers to Kafka 2.8 or newer"})
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	guesses := make([]string, 0, len(versions))
	for guess := range versions {
		guesses = append(guesses, guess)
	}
	return newFact("%s, by the requests that the brokers know", strings.Join(guesses, " and ")), nil
}

// expiresSoon is how long before its end a certificate is warned of.
const expiresSoon = 14 * 24 * time.Hour

// checkEncryption warns of connections that others can read, and of certificates that
// end soon.
func checkEncryption(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	a := f.ForDoctor
	var found []precondition.Finding
	if a.TLS == nil {
		for _, b := range f.Cluster.brokers {
			if !isLocal(b.Host) {
				effect := "whoever is on the way reads campaigns and clients' ids"
				if a.Mechanism != "" {
					effect = "whoever is on the way reads or guesses the password or token, and reads the clients' ids"
				}
				return []precondition.Finding{{Level: precondition.Warn, Object: "broker " + brokerAddress(b), Found: "not encrypted", Effect: effect,
					Fix: "name the TLS port of the brokers in kafka.brokers, and set kafka.tls.enabled: true and kafka.tls.ca"}}, nil
			}
		}
		return newFact("not encrypted, on this machine"), nil
	}
	var first *tls.ConnectionState
	for _, b := range f.Cluster.brokers {
		conn, err := a.dialTLS(ctx, brokerAddress(b))
		if err != nil {
			continue // kafka.brokers reports it
		}
		state := conn.ConnectionState()
		_ = conn.Close()
		if first == nil {
			first = &state
		}
		found = append(found, a.judgeCertificate(state.PeerCertificates[0], "broker "+brokerAddress(b), "renew the broker's certificate, and restart it")...)
	}
	if cfg, err := a.TLS(); err == nil && len(cfg.Certificates) > 0 && cfg.Certificates[0].Leaf != nil {
		found = append(found, a.judgeCertificate(cfg.Certificates[0].Leaf, "kafka.tls.cert", "renew it; the daemon reads the file for each connection")...)
	}
	if len(found) == 0 && first != nil {
		return newFact("%s, certificate until %s", tls.VersionName(first.Version), first.PeerCertificates[0].NotAfter.UTC().Format(time.DateOnly)), nil
	}
	return found, nil
}

func (a *Access) judgeCertificate(cert *x509.Certificate, object, fix string) []precondition.Finding {
	now := time.Now
	if a.Now != nil {
		now = a.Now
	}
	if cert.NotAfter.Sub(now()) >= expiresSoon {
		return nil
	}
	return []precondition.Finding{{Level: precondition.Warn, Object: object, Found: "its certificate ends at " + cert.NotAfter.UTC().Format(time.RFC3339),
		Effect: "from then on connections are refused", Fix: fix}}
}

func isLocal(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// probedLanes is how many lanes' transactional ids are tried at most: a right is given
// by prefix, or to each id.
const probedLanes = 16

// checkTransactionalIDs tries the right on the lanes' transactional ids, which brokers
// do not report. It asks to end a transaction of a producer that cannot exist: a broker
// looks at the right first, and refuses the producer then. So nothing changes, and no
// running lane notices.
func checkTransactionalIDs(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	lanes := min(len(f.Cluster.Topics[f.Config.Campaigns].Partitions), probedLanes)
	if lanes == 0 {
		return nil, errors.New("the campaigns topic is missing")
	}
	for lane := range int32(lanes) {
		err := f.tryTransactionalID(ctx, f.Config.TransactionalID(lane))
		switch {
		case errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
			return []precondition.Finding{f.Config.MissingTransactionRight(lane, f.Cluster.Bootstrap, err)}, nil
		case err != nil:
			return nil, err
		}
	}
	return newFact("%s and so on: Write allowed (tried)", f.Config.TransactionalID(0)), nil
}

// tryTransactionalID returns the error of a missing right, or of a coordinator that
// does not answer.
func (f *Facts) tryTransactionalID(ctx context.Context, id string) error {
	req := kmsg.NewPtrEndTxnRequest()
	req.TransactionalID, req.ProducerID, req.ProducerEpoch = id, math.MaxInt64, 0
	resp, err := req.RequestWith(ctx, f.client)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if errors.Is(err, kerr.InvalidProducerIDMapping) || errors.Is(err, kerr.InvalidTxnState) || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.ProducerFenced) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("try transactional id %s: %w", id, err)
	}
	return nil
}

// checkExpiration warns of brokers that forget a lane's producer after a short quiet
// time.
func checkExpiration(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	settings, err := f.readBrokerSettings(ctx)
	if err != nil {
		return nil, err
	}
	const setting = "transactional.id.expiration.ms"
	expires := time.Duration(settings.readNumber(setting, 604_800_000)) * time.Millisecond
	if expires >= 24*time.Hour {
		return newFact("%s", expires), nil
	}
	return []precondition.Finding{{Level: precondition.Warn, Object: "the brokers", Found: fmt.Sprintf("%s is %s", setting, expires),
		Effect: "a lane without campaigns for so long is taken over anew before its next one",
		Fix:    "in the brokers' server.properties: " + setting + "=604800000; then restart them"}}, nil
}

// likelyDowntime is how long a daemon may be away without anybody's mistake: a weekend.
const likelyDowntime = 72 * time.Hour

// checkDowntime warns of a campaigns topic that deletes messages while a daemon is away
// for a likely time. Less than an hour is a warning of kafka.retention, at the start
// too.
func checkDowntime(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	topic := f.Config.Campaigns
	s, ok := f.topicSettings(topic)
	if !ok || !s.HasPolicy("delete") {
		return nil, nil
	}
	const effect = "a campaign that is not read before is gone, and its lane halts"
	var found []precondition.Finding
	kept := time.Duration(s.readNumber("retention.ms", -1)) * time.Millisecond
	if kept >= minRetention && kept < likelyDowntime {
		found = append(found, precondition.Finding{Level: precondition.Warn, Object: "topic " + topic, Found: fmt.Sprintf("it keeps messages for %s", kept),
			Effect: effect + ": a daemon may be away for a weekend", Fix: f.alterHint(topic, "retention.ms=604800000")})
	}
	if n := s.readNumber("retention.bytes", -1); n >= 0 {
		found = append(found, precondition.Finding{Level: precondition.Warn, Object: "topic " + topic, Found: fmt.Sprintf("it keeps %d bytes a partition (retention.bytes)", n),
			Effect: effect, Fix: f.alterHint(topic, "retention.bytes=-1")})
	}
	if len(found) == 0 && kept > 0 {
		return newFact("campaigns are kept for %s", kept), nil
	}
	return found, nil
}

func brokerAddress(b kadm.BrokerDetail) string { return net.JoinHostPort(b.Host, fmt.Sprint(b.Port)) }
