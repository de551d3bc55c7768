package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/stream/topic"
)

// keyRule is everything about one key but its name, type and default, which are those
// of its struct field. Validate enforces words and least; ChangedKeys asks reload; a
// test writes docs/configuration.md from the table and checks that each key has a rule.
type keyRule struct {
	key string
	// words are the accepted values; nil: any. An upper-case word is accepted in any case.
	words []string
	// least is the smallest accepted number, duration or size, as the file writes it; "":
	// no rule here.
	least string
	// zero says what 0 does where 0 is accepted though it is less than least, or has
	// another meaning than other numbers.
	zero string
	// reload reports that a running daemon takes a new value over on SIGHUP.
	reload bool
	// byDefault is what the documentation names as the default where the field's is empty.
	byDefault string
	// meaning is the effect of the key, its unit and its consequences, in Markdown.
	meaning string
}

// rules has each key once, in the order of the documentation.
var rules = slices.Concat(sourceRules, sinkRules, kafkaRules, stateRules, daemonRules)

var sourceRules = []keyRule{
	{key: "source.url", byDefault: "required", meaning: "Address of the Postgres that holds the subscriptions: of the server itself, not of a pooler. The role needs REPLICATION, and SELECT on the table. With standbys, name all hosts: `postgres://dinnerbell@db1,db2/de?target_session_attrs=read-write`. Read again at every connection."},
	{key: "source.password_command", byDefault: "none", meaning: "A program and its arguments that print the password of `source.url`, for tokens that expire (Amazon RDS, Cloud SQL, Vault): `[aws, rds, generate-db-auth-token, --hostname, db, --port, 5432, --username, dinnerbell]`. In the environment variable, commas separate the program and its arguments. The daemon starts the program itself, without a shell, for every new connection; connections that begin at the same time share one run. The program must print one line and end within ten seconds; the daemon then kills the processes of its process group that are left. `source.url` must have no password beside the command."},
	{key: "source.table", meaning: "The table of subscriptions, as `schema.table`, with names as the catalog has them: no folding to lower case. A name with a dot goes into double quotes. A name alone is in `public`."},
	{key: "source.columns.id", meaning: "The primary key of that table, or another unique key whose columns are NOT NULL. A list for a composite key: `id: [client_id, restaurant_id]`."},
	{key: "source.columns.client", meaning: "The column with the client's id, of any type."},
	{key: "source.columns.restaurant", meaning: "The column with the restaurant's id, of any type. Ids of campaigns and of this column are compared byte by byte."},
	{key: "source.publication", meaning: "Name of the publication, which `setup` creates."},
	{key: "source.slot", meaning: "Name of the replication slot: lower-case letters, digits and `_`, at most 63. Each daemon needs a slot of its own. The name is also the daemon's identity in the consumer group."},
	{key: "source.on_lost", words: []string{"rebuild", "halt"}, meaning: "What the daemon does when the stream can no longer bring the local subscriptions up to date (the slot is gone, the server was restored, the table was made again), or when rows changed without a message (a partition was attached). `rebuild`: the daemon takes a new snapshot by itself. `halt`: it exits with 3, names the event, and goes on after `dinnerbell rebuild --offline`. [postgres.md](postgres.md) lists the events."},
}

var sinkRules = []keyRule{
	{key: "sink.url", byDefault: "`source.url`", meaning: "Address of the Postgres that holds the feedback table. The role needs INSERT and SELECT on that table, and the rights on the daemon's own tables that [security.md](security.md#roles-of-postgres) lists. Read again at every connection."},
	{key: "sink.password_command", byDefault: "none", meaning: "A program that prints the password of `sink.url`, under the rules of [`source.password_command`](#sourcepassword_command). Without `sink.url` the daemon connects to the sink with `source.url` and `source.password_command`."},
	{key: "sink.table", meaning: "The feedback table, as `schema.table`; see [the feedback table](#the-feedback-table)."},
	{key: "sink.schema", meaning: "Schema of the daemon's own tables `lane`, `campaign`, `outbox` and `layout`. Each campaigns topic needs a schema of its own: with the schema of another topic, the lanes halt."},
	{key: "sink.max_connections", least: "2", zero: "one for each lane, and four", meaning: "The largest number of connections that the lanes of this daemon hold. With `0` each lane has one, and all lanes share four for reading. A lane that waits for a connection shows this in `status`. The mirror has four connections of its own to `source.url`, and up to six more during a rebuild or `verify`."},
}

var kafkaRules = []keyRule{
	{key: "kafka.brokers", byDefault: "required", meaning: "The brokers to ask first, each as `host:port`."},
	{key: "kafka.campaigns", meaning: "The input topic. Its partitions are the lanes."},
	{key: "kafka.notifications", meaning: "The output topic. Its consumers must read with `isolation.level=read_committed`."},
	{key: "kafka.dead_letters", meaning: "The topic of refused messages."},
	{key: "kafka.progress", meaning: "The topic of the lanes' progress: compacted, with at least as many partitions as the input topic; see [kafka.md](kafka.md)."},
	{key: "kafka.group", meaning: "Name of the consumer group, and prefix of the transactional ids. All daemons of a deployment have the same group."},
	{key: "kafka.tls.enabled", meaning: "Encrypt the connections to the brokers. The certificate and the host's name are always checked."},
	{key: "kafka.tls.ca", byDefault: "the system's authorities", meaning: "PEM file of the authorities that may have signed the brokers' certificates. This file and the next two are read at the start and again for each connection."},
	{key: "kafka.tls.cert", byDefault: "none", meaning: "PEM file of the client certificate."},
	{key: "kafka.tls.key", byDefault: "none", meaning: "PEM file of the client certificate's key. The key may be encrypted, as PKCS#8 or in the older form of openssl."},
	{key: "kafka.tls.key_password", byDefault: "none", meaning: "Password of an encrypted `kafka.tls.key`."},
	{key: "kafka.tls.server_name", byDefault: "the broker's host", meaning: "The name that the brokers' certificates must have, if it is not the host of the address."},
	{key: "kafka.sasl.mechanism", words: mechanisms, byDefault: "none", meaning: "How the daemon logs in to the brokers."},
	{key: "kafka.sasl.username", byDefault: "none", meaning: "User of PLAIN and SCRAM. Read again at every connection, as the password is."},
	{key: "kafka.sasl.password", byDefault: "none", meaning: "Required with PLAIN and SCRAM."},
	{key: "kafka.sasl.token", byDefault: "none", meaning: "Token of OAUTHBEARER, which another program renews: `${file:/run/secrets/kafka-token}`. Read again at every connection, and when a connection's session ends. [kafka.md](kafka.md#tokens) compares the three ways to a token; OAUTHBEARER needs exactly one of them."},
	{key: "kafka.sasl.token_command", byDefault: "none", meaning: "A program and its arguments that print the token of OAUTHBEARER, under the rules of [`source.password_command`](#sourcepassword_command)."},
	{key: "kafka.sasl.oidc.token_url", byDefault: "none", meaning: "Address of the token endpoint of an identity provider, which gives tokens for OAUTHBEARER by OIDC client credentials. The address must begin with https, except on loopback. The daemon uses the proxy in the variable `HTTPS_PROXY`, follows no redirect, waits ten seconds for an answer, and asks at most once a second. It uses a token for new connections until a minute before the end of its `expires_in`, or a fifth of a life shorter than five minutes."},
	{key: "kafka.sasl.oidc.client_id", byDefault: "none", meaning: "Sent with the secret by HTTP Basic authentication, which RFC 6749 demands of every provider. Read again at every request."},
	{key: "kafka.sasl.oidc.client_secret", byDefault: "none", meaning: "Read again at every request."},
	{key: "kafka.sasl.oidc.scope", byDefault: "the provider's", meaning: "The scopes to ask for, with blanks between them."},
	{key: "kafka.sasl.oidc.ca", byDefault: "the system's authorities", meaning: "PEM file of the authority that signed the provider's certificate. Read again at every request."},
	{key: "kafka.sasl.extensions", byDefault: "none", meaning: "SASL extensions of OAUTHBEARER, each as `name=value`. Confluent Cloud needs `[logicalCluster=lkc-…, identityPoolId=pool-…]`."},
	{key: "kafka.sasl.aws.access_key_id", byDefault: "none", meaning: "Access key of AWS_MSK_IAM. This key and the next two are read again at every connection. The region is part of the brokers' names; for other names set the variable `AWS_REGION`. See [kafka.md](kafka.md#amazon-msk-with-iam)."},
	{key: "kafka.sasl.aws.secret_access_key", byDefault: "none", meaning: "The secret of the access key. The daemon signs with it and does not send it."},
	{key: "kafka.sasl.aws.session_token", byDefault: "none", meaning: "Session token of temporary credentials."},
	{key: "kafka.sasl.aws.credentials_command", byDefault: "none", meaning: "Instead of the keys, a program and its arguments that print them as AWS's `credential_process` does: `[aws, configure, export-credentials, --format, process]`. The rules of [`source.password_command`](#sourcepassword_command) hold, except that the output may have several lines."},
	{key: "kafka.start", meaning: "Where a new deployment begins to read the campaigns topic: `" + topic.StartEarliest + "`, `" + topic.StartLatest + "` or an RFC 3339 time such as `2026-01-31T08:00:00Z`. Used once, when the first daemon starts; `dinnerbell replay` reads earlier messages later."},
}

var stateRules = []keyRule{
	{key: "state.dir", meaning: "Folder of the local store, which can be rebuilt from Postgres and needs no backup; relative to the working directory. A missing folder is made with mode 0700. The daemon refuses a folder in which every user may write (the root of a Kubernetes `emptyDir`: name a folder below it), and a folder that belongs to a user other than the daemon's user and root. A daemon that runs as root also accepts another user's folder if the folder was in use before and only root can write in the folder above. A group may write (`fsGroup`)."},
	{key: "state.reserve", byDefault: "`512MB` or `5%`, whichever is less", zero: "no reserve", meaning: "Free space on the disk that the daemon does not use: a size, or a share of the file system such as `3%`. With less free space, changes of the subscriptions wait."},
	{key: "state.checkpoint.every", least: "1s", zero: "only `checkpoint create` makes checkpoints, and the slot is acknowledged past them", meaning: "How often the daemon saves the local state as a checkpoint. The replication slot keeps the WAL since the newest checkpoint, within [bounds](guarantees.md#promises)."},
	{key: "state.checkpoint.keep", least: "1", meaning: "How many of these checkpoints are kept, and separately how many that `checkpoint create` made. One more may exist that was made to release WAL."},
	{key: "state.history.size", least: "1MB", zero: "no history", meaning: "How much the local state remembers of the changes of subscriptions, for `explain` and for late subscribers: bytes before compression; the oldest changes are dropped first. A change of UUID ids takes 20 to 40 bytes, so the default holds some 8 million changes. The history is lost with the local state, and begins anew with each snapshot and rebuild. With `join.late_subscribers` the history has at least 64 MB."},
	{key: "state.history.age", least: "1m", meaning: "How long a change is remembered."},
}

var daemonRules = []keyRule{
	{key: "join.freshness", words: []string{string(cdc.Strict), string(cdc.Bounded), string(cdc.Off)}, meaning: "How fresh the local subscriptions must be for the join with a campaign. `strict`: the join waits for everything that was committed before the daemon received the campaign. `bounded`: the join waits only while the mirror is not known to have been fresh within `join.max_staleness`. `off`: the join waits for nothing but the first complete snapshot."},
	{key: "join.max_staleness", meaning: "The limit of `bounded`, above 0; with `strict` and `off` any value but the default is refused. The mirror asks for the server's position several times within this time. It is known to be fresh as of the newest of these positions that it has reached."},
	{key: "join.late_subscribers", meaning: "`true`: a client who subscribes while a campaign of the restaurant is live gets that campaign, once; see [late subscribers](guarantees.md#late-subscribers). Run `setup` with the option on, since it creates two indexes on the daemon's own campaign table."},
	{key: "limits.max_audience", least: "0", zero: "no limit", reload: true, meaning: "A campaign whose restaurant has more subscribers is parked until `dinnerbell approve`, or until its end. The audience is counted when the campaign is joined for the first time, and again at an edit or `resume`; an approval holds for later edits until the campaign is cancelled. A parked campaign stays parked if the limit is raised."},
	{key: "limits.notifications_per_second", least: "0", zero: "no limit", reload: true, meaning: "How many notifications all lanes of this daemon decide together in a second. After a pause the lanes may exceed the limit by what a fifth of a second allows. Messages are accepted, cancels take effect, and a stopping daemon drains without waiting for the limit. Clients who subscribe late are notified at once, and count."},
	{key: "http.listen", meaning: "Address of the HTTP server, as `host:port`. The server answers GET and HEAD only. An address off loopback (`0.0.0.0`, an address of the machine, a name) needs `http.tls` and `http.token`, or `http.insecure: true`; otherwise `run` ends with 2. HTTP holds at most an eighth of the process's file descriptors, and at most 256; the server closes the connections first that have waited longest. [security.md](security.md#the-http-listener) describes what each reader sees and how to set it up."},
	{key: "http.tls.cert", byDefault: "none", meaning: "PEM file of the server's certificate, the intermediate certificates behind it. With it the server accepts only HTTPS, with TLS 1.2 or newer. The file and `http.tls.key` are read again for each connection; while the new pair cannot be used, the daemon goes on with the former one and logs a warning."},
	{key: "http.tls.key", byDefault: "none", meaning: "PEM file of the certificate's key, without a password."},
	{key: "http.token", byDefault: "none", meaning: "What a request must bring, as `Authorization: Bearer TOKEN`, or in a browser as the password of any user (HTTP Basic): 16 to 1,024 printable ASCII characters, such as `${file:/run/secrets/dinnerbell-http-token}` filled by `openssl rand -hex 32`. Read again for each request. `/healthz` and `/readyz` answer without a token, but then without reasons. After ten wrong tokens an address has one attempt every six seconds; if the daemon cannot read the token, it refuses every request."},
	{key: "http.hosts", byDefault: "none", meaning: "Further host names that clients use for the server, such as the name of a proxy that passes the Host on. The check of the Host keeps web pages from reading the answers under a name of their own. Without a token the server answers to addresses, to `localhost`, to the name in `http.listen` and to these names; with `http.insecure` also to names that no stranger can own: without a dot, or below `.local`, `.internal`, `.svc` and `.home.arpa`. With a token it answers to every name."},
	{key: "http.insecure", meaning: "`true`: the server listens off loopback although TLS or the token, or both, are missing. Everybody who reaches the port then reads campaigns, status and metrics: for private networks (a container, a pod behind a network policy), or behind a proxy that encrypts and authenticates."},
	{key: "log.level", words: []string{"debug", "info", "warn", "error"}, reload: true, meaning: "The least level of the messages on standard error."},
	{key: "log.format", words: []string{"text", "json"}, meaning: "Format of the log on standard error. In both formats a repeated warning is written again after 10, 20, 40 seconds and so on, up to five minutes, with the number of repetitions as `repeated`, and at once after any other message of its part."},
	{key: "tracing.endpoint", byDefault: "no traces", meaning: "Address of an OpenTelemetry collector that takes OTLP over HTTP, as `http://collector:4318`; see [tracing.md](tracing.md). With traces on, notifications have the header `traceparent`, which takes 100 bytes of the largest message that the topic accepts."},
	{key: "tracing.sample_percent", least: "0", zero: "none but those whose message asks for it", meaning: "How many of 100 campaigns are traced. If a message has the header `traceparent`, that header decides for its campaign."},
}

// ruleOf returns the rule of a key; the zero rule for an unknown one.
func ruleOf(key string) keyRule {
	for _, r := range rules {
		if r.key == key {
			return r
		}
	}
	return keyRule{}
}

// checkRules reports the values that the table does not accept. Defaults are accepted.
func (c *Config) checkRules() []error {
	var out []error
	defaults := newTree(Defaults()).allLeaves()
	for i, f := range newTree(c).allLeaves() {
		if reflect.DeepEqual(f.value.Interface(), defaults[i].value.Interface()) {
			continue
		}
		r := ruleOf(f.key)
		if r.words != nil && !slices.ContainsFunc(r.words, func(w string) bool { return acceptsWord(w, f.value.String()) }) {
			out = append(out, fmt.Errorf("%s: %q is none of %s", f.key, f.value.String(), strings.Join(r.words, ", ")))
		}
		if err := r.checkLeast(f); err != nil {
			out = append(out, err)
		}
	}
	return out
}

// acceptsWord compares a value with a word of a rule.
func acceptsWord(word, value string) bool {
	return word == value || word == strings.ToUpper(word) && strings.EqualFold(word, value)
}

// checkLeast compares a number, duration or size with the smallest accepted one.
func (r keyRule) checkLeast(f *configField) error {
	if r.least == "" {
		return nil
	}
	least := configField{key: r.key, value: reflect.New(f.value.Type()).Elem()}
	if err := least.setText(r.least, nil); err != nil {
		return fmt.Errorf("%s: read its bound: %w", r.key, err)
	}
	switch n := f.value.Int(); {
	case n >= least.value.Int():
		return nil
	case n == 0 && r.zero != "":
		return nil
	}
	text := fmt.Sprint(f.value.Interface())
	switch v := f.value.Interface().(type) {
	case Size:
		text = fmt.Sprintf("%d bytes", v)
	case Age:
		text = time.Duration(v).String()
	}
	hint := ""
	if r.zero != "" {
		hint = "; 0: " + strings.ReplaceAll(r.zero, "`", "")
	}
	return fmt.Errorf("%s: %s is less than %s%s", r.key, text, r.least, hint)
}
