package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// write puts a file of that content into a folder of the test.
func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// minimal is the shortest valid file.
const minimal = "source: {url: 'postgres://u:pw@db/de'}\nkafka: {brokers: ['k:9092']}\n"

// full has every key, as the documentation shows it.
const full = `
source:
  url: postgres://dinnerbell@db:5432/de      # needs REPLICATION
  table: shop.subs
  columns: {id: nr, client: who, restaurant: where}
  publication: pub
  slot: slot_1
sink:
  url: postgres://dinnerbell@sink:5432/de
  table: shop.feedback
  schema: bell
kafka:
  brokers: [kafka:9092, "kafka2:9092"]
  campaigns: c
  notifications: n
  dead_letters: d
  progress: p
  group: g
  tls: {enabled: true, ca: /ca.pem, cert: /c.pem, key: /k.pem, server_name: kafka.internal}
  sasl: {mechanism: SCRAM-SHA-512, username: me, password: 0123}
  start: 2026-01-31T08:00:00Z
state:
  dir: /var/lib/dinnerbell
  history: {age: 7d, size: 256MB}
join:
  freshness: strict
  late_subscribers: false
http:
  listen: 0.0.0.0:80
  hosts: [bell.example]
  insecure: true
log: {level: debug, format: json}
`

func TestLoadFull(t *testing.T) {
	t.Parallel()
	files := keyPair(t)
	cfg, err := Load(write(t, "f.yaml", strings.NewReplacer("/ca.pem", files.cert, "/c.pem", files.cert, "/k.pem", files.plain).Replace(full)), Env{})
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := cfg.Source.Table; got != (Table{"shop", "subs"}) {
		t.Errorf("source.table = %v", got)
	}
	if want := (Columns{[]string{"nr"}, "who", "where"}); !reflect.DeepEqual(cfg.Source.Columns, want) {
		t.Errorf("source.columns = %v, want %v", cfg.Source.Columns, want)
	}
	if want := []string{"kafka:9092", "kafka2:9092"}; !reflect.DeepEqual(cfg.Kafka.Brokers, want) {
		t.Errorf("kafka.brokers = %v, want %v", cfg.Kafka.Brokers, want)
	}
	if want := (TLS{Enabled: true, CA: files.cert, Cert: files.cert, Key: files.plain, KeyPassword: cfg.Kafka.TLS.KeyPassword, ServerName: "kafka.internal"}); !reflect.DeepEqual(cfg.Kafka.TLS, want) {
		t.Errorf("kafka.tls = %v, want %v", cfg.Kafka.TLS, want)
	}
	if pw, err := cfg.Kafka.SASL.Password.Reveal(); err != nil || pw != "0123" {
		t.Errorf("kafka.sasl.password = %q, %v; a password of digits is kept as written", pw, err)
	}
	if url, err := cfg.SinkURL(); err != nil || url != "postgres://dinnerbell@sink:5432/de" {
		t.Errorf("sink url = %q, %v", url, err)
	}
}

func TestDefaultsStayWhereNothingIsSet(t *testing.T) {
	t.Parallel()
	cfg, err := Load(write(t, "f.yaml", minimal+"sink:\nlog:\n  level:\nhttp: null\n"), Env{})
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.watchSecrets()
	want.Source.URL, want.Kafka.Brokers = cfg.Source.URL, []string{"k:9092"}
	want.missing = cfg.missing
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got %+v\nwant %+v", cfg, want)
	}
	if url, err := cfg.SinkURL(); err != nil || url != "postgres://u:pw@db/de" {
		t.Errorf("sink url = %q, %v; want the source's", url, err)
	}
}

// Every leaf is reachable by its variable and has a kind that set can read.
func TestEveryKeyHasItsVariable(t *testing.T) {
	t.Parallel()
	sample := map[reflect.Type]string{
		reflect.TypeFor[string]():        "x",
		reflect.TypeFor[bool]():          "true",
		reflect.TypeFor[int]():           "7",
		reflect.TypeFor[time.Duration](): "7s",
		reflect.TypeFor[[]string]():      "a:1, b:2",
		reflect.TypeFor[Table]():         "s.t",
		reflect.TypeFor[Reserve]():       "3%",
		reflect.TypeFor[Size]():          "3MB",
		reflect.TypeFor[Age]():           "3d",
		reflect.TypeFor[Secret]():        "postgres://x",
	}
	for _, leaf := range newTree(Defaults()).allLeaves() {
		value, ok := sample[leaf.value.Type()]
		if !ok {
			t.Errorf("%s: no sample of %s", leaf.key, leaf.value.Type())
			continue
		}
		cfg := Defaults()
		name := "DINNERBELL_" + strings.ToUpper(strings.ReplaceAll(leaf.key, ".", "_"))
		if problems := cfg.readEnv(nil, Env{name: value}); len(problems) > 0 {
			t.Errorf("%s did not set %s: %v", name, leaf.key, problems)
		}
		if reflect.DeepEqual(newTree(cfg).leafAt(leaf.key).Interface(), leaf.value.Interface()) {
			t.Errorf("%s=%s left %s at its default", name, value, leaf.key)
		}
	}
}

func (f *configField) leafAt(key string) reflect.Value {
	for _, l := range f.allLeaves() {
		if l.key == key {
			return l.value
		}
	}
	return reflect.Value{}
}

func TestEnvironmentWins(t *testing.T) {
	t.Parallel()
	cfg, err := Load(write(t, "f.yaml", full), Env{
		"DINNERBELL_SOURCE_URL":               "postgres://env/x\n", // as of a Kubernetes secret made of a file
		"DINNERBELL_SOURCE_COLUMNS_ID":        "pk, Day",
		"DINNERBELL_KAFKA_BROKERS":            "a:1, b:2",
		"DINNERBELL_KAFKA_TLS_ENABLED":        "false",
		"DINNERBELL_SINK_URL":                 "",
		"DINNERBELL_KAFKA_PORT_9092_TCP_ADDR": "set by Kubernetes",
		"DINNERBELL_KAFKA_SERVICE_HOST":       "set by Kubernetes",
		"DINNERBELL_SERVICE_HOST":             "10.0.0.1",
		"DINNERBELL_SERVICE_PORT":             "8420",
		"DINNERBELL_SERVICE_PORT_HTTP":        "8420",
		"DINNERBELL_PORT":                     "tcp://10.0.0.1:8420",
		"DINNERBELL_PORT_8420_TCP":            "tcp://10.0.0.1:8420",
		"DINNERBELL_PORT_8420_TCP_PROTO":      "tcp",
		"DINNERBELL_CONFIG":                   "f.yaml",
		"DINNERBELL_SINK_TABLE":               "${DINNERBELL_TABLE}",
		"DINNERBELL_TABLE":                    "public.other", // referred to
	})
	if err != nil {
		t.Fatal(err)
	}
	if url, _ := cfg.SinkURL(); url != "postgres://env/x" {
		t.Errorf("sink url = %q; emptied by the environment it is the source's", url)
	}
	if !slices.Equal(cfg.Source.Columns.ID, []string{"pk", "Day"}) || cfg.Source.Columns.Client != "who" {
		t.Errorf("columns = %+v", cfg.Source.Columns)
	}
	if want := []string{"a:1", "b:2"}; !reflect.DeepEqual(cfg.Kafka.Brokers, want) {
		t.Errorf("brokers = %v, want %v", cfg.Kafka.Brokers, want)
	}
	if cfg.Kafka.TLS.Enabled {
		t.Error("tls.enabled = true")
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		yaml string
		env  Env
		want string // in the error
	}{
		"misspelled":        {"source:\n  ulr: x", nil, "f.yaml:2: unknown key source.ulr; did you mean source.url?"},
		"top level":         {"\n\nkafak: {}", nil, "f.yaml:3: unknown key kafak; did you mean kafka?"},
		"nested":            {"kafka:\n  tls: {enabeld: true}", nil, "unknown key kafka.tls.enabeld; did you mean kafka.tls.enabled?"},
		"case":              {"Source: {}", nil, "did you mean source?"},
		"dashes":            {"kafka: {dead-letters: x}", nil, "did you mean kafka.dead_letters?"},
		"wrong section":     {"source: {brokers: [x]}", nil, "did you mean kafka.brokers?"},
		"at the root":       {"brokers: [x]", nil, "did you mean kafka.brokers?"},
		"scalar section":    {"source: postgres://x", nil, "f.yaml:1: source holds keys"},
		"scalar file":       {"hello", nil, "the file holds keys"},
		"list for text":     {"source: {slot: [a]}", nil, "source.slot: expected a single value"},
		"map for text":      {"log: {level: {a: b}}", nil, "log.level: expected a single value"},
		"bad bool":          {"kafka: {tls: {enabled: maybe}}", nil, "kafka.tls.enabled: \"maybe\" is neither true nor false"},
		"bad duration":      {"join: {max_staleness: 5}", nil, "join.max_staleness: \"5\" is not a duration such as 30s"},
		"bad table":         {"source: {table: a.b.c}", nil, "write schema.table"},
		"duplicate":         {"log: {level: info}\nlog: {level: warn}", nil, "log"},
		"not yaml":          {"source: [", nil, "not YAML: did not find expected node content"},
		"far from all":      {"metrics: {listen: x}", nil, "unknown key metrics; the file has http, join"},
		"far in a section":  {"kafka: {security_protocol: SASL_SSL}", nil, "unknown key kafka.security_protocol; kafka has brokers, campaigns"},
		"far and short":     {"kafka: {tls: {x: y}}", nil, "unknown key kafka.tls.x; kafka.tls has ca, cert"},
		"far variable":      {"", Env{"DINNERBELL_KAFKA_SECURITY_PROTOCOL": "x"}, "unknown variable DINNERBELL_KAFKA_SECURITY_PROTOCOL"},
		"key twice":         {"log:\n  level: info\n  level: warn", nil, "f.yaml:3: log.level: set twice, first in line 2"},
		"section twice":     {"log: {level: info}\nhttp: {}\nlog: {}", nil, "f.yaml:3: log: set twice, first in line 1"},
		"alias of itself":   {"source: {columns: {id: &a [*a]}}", nil, "source.columns.id: expected a single value"},
		"section in itself": {"source: &s {columns: *s}", nil, "unknown key source.columns.columns"},
		"nested aliases":    {bomb(), nil, "source.columns.id: expected a single value"},
		"unknown alias":     {"kafka: {sasl: {password: *zz9}}", nil, "f.yaml:1: not YAML: an alias (*name) without its anchor"},
		"anchor for text":   {"kafka: {sasl: {password: &zz9}}", nil, "begins with & into quotes"},
		"tag for text":      {"kafka: {sasl: {password: !zz9}}", nil, "begins with ! into quotes"},
		"no start":          {"kafka: {sasl: {password: @zz9}}", nil, "into quotes"},
		"no blank":          {"source: {url:postgres://u:zz9@h/de}", nil, "f.yaml:1: something that is no key"},
		"list for a key":    {"? [zz9]\n: x", nil, "something that is no key"},
		"merge":             {"source: &s {slot: a}\nsink: {<<: *s}", nil, "merge keys (<<) are not supported"},
		"list for the file": {"- a", nil, "f.yaml:1: the file holds keys"},
		"list in a list":    {"kafka: {brokers: [[a]]}", nil, "kafka.brokers: expected a single value"},
		"deep":              {strings.Repeat("[", 50_000), nil, "not YAML: exceeded max depth"},
		"tab":               {"source:\n\turl: x", nil, "f.yaml:2: not YAML: a tab before the key"},
		"not UTF-8":         {"source: {slot: \"\xff\"}", nil, "not YAML: invalid leading UTF-8 octet"},
		"too large":         {"# " + strings.Repeat("x", maxFile), nil, "is larger than"},
		"endless file":      {"source: {slot: '${file:/dev/zero}'}", nil, "/dev/zero is larger than"},
		"many":              {strings.Repeat("?: x\n", 30_000), nil, "and 29980 more"},
		"two documents":     {"log: {level: info}\n---\nlog: {level: warn}", nil, "second YAML document"},
		"unset variable":    {"source: {slot: '${NOPE}'}", nil, "source.slot: expand ${NOPE}: the environment variable NOPE is not set"},
		"open reference":    {"source: {slot: '${NOPE'}", nil, "without its }"},
		"unknown variable":  {"", Env{"DINNERBELL_SOURCE_ULR": "x"}, "unknown variable DINNERBELL_SOURCE_ULR; did you mean DINNERBELL_SOURCE_URL?"},
		"no section":        {"", Env{"DINNERBELL_LIMIT_X": "1"}, "unknown variable DINNERBELL_LIMIT_X; the variables of limits are DINNERBELL_LIMITS_MAX_AUDIENCE, DINNERBELL_LIMITS_NOTIFICATIONS_PER_SECOND"},
		"singular section":  {"", Env{"DINNERBELL_LIMIT_MAX_AUDIENCE": "1"}, "did you mean DINNERBELL_LIMITS_MAX_AUDIENCE?"},
		"foreign variable":  {"", Env{"DINNERBELL_BACKUP": "1"}, "unknown variable DINNERBELL_BACKUP; a key such as source.url is DINNERBELL_SOURCE_URL"},
		"no service's port": {"", Env{"DINNERBELL_HTTP_PORT": "8080"}, "unknown variable DINNERBELL_HTTP_PORT"},
		"yes":               {"join: {late_subscribers: yes}", nil, "f.yaml:1: join.late_subscribers: \"yes\" is neither true nor false"},
		"no number":         {"limits: {max_audience: 1e6}", nil, "limits.max_audience: \"1e6\" is not a whole number"},
		"large number":      {"limits: {max_audience: 99999999999999999999}", nil, "limits.max_audience: \"99999999999999999999\" is too large a number"},
		"bad variable":      {"", Env{"DINNERBELL_KAFKA_TLS_ENABLED": "maybe"}, "DINNERBELL_KAFKA_TLS_ENABLED (kafka.tls.enabled): \"maybe\" is neither true nor false"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(write(t, "f.yaml", tc.yaml), tc.env)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v\nwant one with %q", err, tc.want)
			}
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v does not wrap ErrInvalid", err)
			}
			if strings.Contains(err.Error(), "zz9") {
				t.Errorf("%v shows what may be a secret", err)
			}
		})
	}
}

// bomb is a list of lists of the list before, nine times: 9^9 items.
func bomb() string {
	list := `&x0 ["a"]`
	for i := range 9 {
		list = fmt.Sprintf("&x%d [%s%s]", i+1, list, strings.Repeat(fmt.Sprintf(", *x%d", i), 9))
	}
	return "source: {columns: {id: " + list + "}}"
}

// As people and their editors write it.
func TestLoadAcceptsForms(t *testing.T) {
	t.Parallel()
	utf16 := []byte{0xff, 0xfe}
	for _, c := range []byte(minimal) {
		utf16 = append(utf16, c, 0)
	}
	for name, text := range map[string]string{
		"plain":             minimal,
		"CRLF":              strings.ReplaceAll(minimal, "\n", "\r\n"),
		"byte order mark":   "\ufeff" + minimal,
		"UTF-16":            string(utf16),
		"host:port in flow": "source: {url: 'postgres://u:pw@db/de'}\nkafka: {brokers: [k:9092]}",
		"a string":          "source: {url: 'postgres://u:pw@db/de'}\nkafka: {brokers: 'k:9092'}",
		"a block":           "source:\n  url: |\n    postgres://u:pw@db/de\nkafka:\n  brokers:\n  - k:9092\n",
		"document marks":    "---\n" + minimal + "...\n---\n",
		"a list of aliases": "source: {url: &u 'postgres://u:pw@db/de', publication: &k 'k:9092'}\nkafka: {brokers: [*k]}",
		"a tagged text":     "source: {url: !!str 'postgres://u:pw@db/de'}\nkafka: {brokers: [!!str k:9092]}",
	} {
		cfg, err := Load(write(t, "f.yaml", text), Env{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if url, err := cfg.SourceURL(); err != nil || url != "postgres://u:pw@db/de" || !slices.Equal(cfg.Kafka.Brokers, []string{"k:9092"}) {
			t.Errorf("%s: %q, %v, brokers %v", name, url, err, cfg.Kafka.Brokers)
		}
	}
}

func TestAnchorsWork(t *testing.T) {
	t.Parallel()
	cfg, err := Load(write(t, "f.yaml", "source: {url: &u postgres://a/b, slot: s}\nsink: {url: *u}\n"), Env{})
	if err != nil {
		t.Fatal(err)
	}
	if url, _ := cfg.SinkURL(); url != "postgres://a/b" || !cfg.Sink.URL.IsSet() {
		t.Errorf("sink.url = %q", url)
	}
}

func TestValidateRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		yaml string
		env  Env
		want string
	}{
		"no source":         {yaml: "kafka: {brokers: ['k:1']}", want: "source.url: not set, and it has no default: set it in the file or as DINNERBELL_SOURCE_URL"},
		"no brokers":        {yaml: "source: {url: 'postgres://x/y'}", want: "kafka.brokers: not set"},
		"broker":            {yaml: "kafka: {brokers: [kafka]}", want: `"kafka" is not host:port`},
		"broker scheme":     {yaml: "kafka: {brokers: ['http://kafka:9092']}", want: "is not host:port"},
		"broker with user":  {yaml: "kafka: {brokers: ['u:zz9@kafka:9092']}", want: "kafka.brokers: user and password do not belong there"},
		"listen with user":  {yaml: "http: {listen: 'zz9@h:80'}", want: "http.listen: user and password do not belong there"},
		"raw @":             {yaml: "source: {url: 'postgres://u:p@zz9@db:5432/de'}", want: "source.url: more than one raw @"},
		"raw /":             {yaml: "sink: {url: 'postgres://u:12/zz9@db:5432/de'}", want: "sink.url: a raw @ stands behind"},
		"slot":              {yaml: "source: {slot: Dinner-Bell}", want: "source.slot"},
		"url":               {yaml: "source: {url: 'postgres://u:p%zz9@db:5432/de'}", want: "source.url: not a Postgres address"},
		"url variable":      {yaml: "source: {url: 'postgres://${USR}@db/de'}", want: "source.url: expand ${USR}: the environment variable USR is not set"},
		"url file":          {yaml: "sink: {url: '${file:/nope/x}'}", want: "sink.url: expand ${file:/nope/x}"},
		"same topic":        {yaml: "kafka: {brokers: ['k:1'], campaigns: notifications}", want: "kafka.campaigns already"},
		"topic":             {yaml: "kafka: {brokers: ['k:1'], progress: 'a b'}", want: "kafka.progress"},
		"start":             {yaml: "kafka: {brokers: ['k:1'], start: yesterday}", want: "kafka.start"},
		"tls off":           {yaml: "kafka: {brokers: ['k:1'], tls: {ca: /x}}", want: "kafka.tls: has settings but is off"},
		"tls half":          {yaml: "kafka: {brokers: ['k:1'], tls: {enabled: true, cert: /x}}", want: "cert and key go together"},
		"no ca file":        {yaml: "kafka: {brokers: ['k:1'], tls: {enabled: true, ca: /nowhere/ca.pem}}", want: "kafka.tls.ca: open /nowhere/ca.pem: no such file"},
		"ca is a folder":    {yaml: "kafka: {brokers: ['k:1'], tls: {enabled: true, ca: /}}", want: "kafka.tls.ca: read /: is a directory"},
		"ca is not PEM":     {yaml: "kafka: {brokers: ['k:1'], tls: {enabled: true, ca: /proc/self/comm}}", want: "holds no PEM certificate"},
		"no cert file":      {yaml: "kafka: {brokers: ['k:1'], tls: {enabled: true, cert: /nowhere/c, key: /nowhere/k}}", want: "kafka.tls.cert: open /nowhere/c"},
		"password alone":    {yaml: "kafka: {brokers: ['k:1'], tls: {enabled: true, key_password: zz9}}", want: "there is no kafka.tls.key"},
		"sasl off":          {yaml: "kafka: {brokers: ['k:1'], sasl: {username: u}}", want: "no mechanism"},
		"sasl unknown":      {yaml: "kafka: {brokers: ['k:1'], sasl: {mechanism: GSSAPI, username: u, password: p}}", want: "GSSAPI"},
		"sasl half":         {yaml: "kafka: {brokers: ['k:1'], sasl: {mechanism: PLAIN, username: u}}", want: "kafka.sasl.password: not set"},
		"audience":          {yaml: "limits: {max_audience: -1}", want: "limits.max_audience: -1 is less than 0"},
		"rate":              {yaml: "limits: {notifications_per_second: -5}", want: "limits.notifications_per_second: -5 is less than 0"},
		"empty dir":         {yaml: "state: {dir: ''}", want: "state.dir"},
		"listen":            {yaml: "http: {listen: '8420'}", want: "http.listen"},
		"open":              {yaml: "http: {listen: '0.0.0.0:8420'}", want: "either set http.tls.cert, http.tls.key and http.token, or set http.insecure: true"},
		"open everywhere":   {yaml: "http: {listen: ':8420'}", want: "http.insecure: true"},
		"open on IPv6":      {yaml: "http: {listen: '[::]:8420'}", want: "http.insecure: true"},
		"open on an IPv4":   {yaml: "http: {listen: '10.1.2.3:8420'}", want: "http.insecure: true"},
		"open on a name":    {yaml: "http: {listen: 'bell.example:8420'}", want: "http.insecure: true"},
		"open by env":       {env: Env{"DINNERBELL_HTTP_LISTEN": "0.0.0.0:8420"}, want: "http.insecure: true"},
		"token in the open": {yaml: "http: {listen: '0.0.0.0:8420', token: zz9-0123456789abcdef}", want: "either set http.tls.cert and http.tls.key, or"},
		"short token":       {yaml: "http: {token: zz9}", want: "http.token: not 16 to 1024 characters long"},
		"long token":        {yaml: "http: {token: " + strings.Repeat("zz9", 400) + "}", want: "http.token: not 16 to 1024 characters long"},
		"blank in token":    {yaml: "http: {token: zz9 0123456789abcdef}", want: "http.token: has a blank"},
		"token of nothing":  {yaml: "http: {token: '${file:/nope/zz}'}", want: "http.token: expand ${file:/nope/zz}"},
		"certificate half":  {yaml: "http: {tls: {cert: /x}}", want: "http.tls: cert and key go together"},
		"key half":          {yaml: "http: {tls: {key: /x}}", want: "http.tls: cert and key go together"},
		"no certificate":    {yaml: "http: {tls: {cert: /nowhere/c, key: /nowhere/k}}", want: "http.tls.cert: open /nowhere/c"},
		"host with port":    {yaml: "http: {hosts: ['bell.example:80']}", want: "http.hosts: \"bell.example:80\" is not the name of a host"},
		"level":             {yaml: "log: {level: loud}", want: "log.level"},
		"format":            {yaml: "log: {format: xml}", want: "log.format"},
		"odd freshness":     {yaml: "join: {freshness: lax}", want: "join.freshness"},
		"staleness":         {yaml: "join: {max_staleness: 6s}", want: "join.max_staleness"},
		"negative":          {yaml: "join: {freshness: bounded, max_staleness: -1s}", want: "join.max_staleness"},
		"no staleness":      {yaml: "join: {freshness: bounded, max_staleness: 0s}", want: "join.max_staleness"},
		"checkpoint":        {yaml: "state: {checkpoint: {every: 6ms}}", want: "state.checkpoint.every: 6ms is less than 1s"},
		"checkpoint before": {yaml: "state: {checkpoint: {every: -1m}}", want: "state.checkpoint.every"},
		"history size":      {yaml: "state: {history: {size: 900KB}}", want: "state.history.size: 900000 bytes is less than 1MB"},
		"history age":       {yaml: "state: {history: {age: 0}}", want: "state.history.age: 0s is less than 1m"},
		"checkpoint by env": {env: Env{"DINNERBELL_STATE_CHECKPOINT_KEEP": "0"}, want: "state.checkpoint.keep"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, env := tc.yaml, tc.env
			if name != "no source" && name != "no brokers" {
				text, env = completed(tc.yaml, tc.env)
			}
			cfg, err := Load(write(t, "f.yaml", text), env)
			if err != nil {
				t.Fatal(err)
			}
			err = cfg.Validate()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v\nwant one with %q", err, tc.want)
			}
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v does not wrap ErrInvalid", err)
			}
			if strings.Contains(err.Error(), "zz9") {
				t.Errorf("%v shows a part of the password", err)
			}
		})
	}
}

// completed adds values for the keys without a default, where a test does not set
// them itself.
func completed(text string, env Env) (string, Env) {
	all := Env{}
	maps.Copy(all, env)
	if !strings.Contains(text, "brokers") {
		text += "\nkafka: {brokers: ['k:9092']}"
	}
	if !strings.Contains(text, "source: {url") {
		all["DINNERBELL_SOURCE_URL"] = "postgres://x/y"
	}
	return text, all
}

// A running daemon takes some keys over; the others are named. A secret counts as it is
// written, and is never shown.
func TestChangedKeys(t *testing.T) {
	t.Parallel()
	read := func(text string, env Env) *Config {
		cfg, err := Load(write(t, "f.yaml", minimal+text), env)
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	before := read("", Env{"A": "1"})
	if now, restart := ChangedKeys(before, read("", Env{"A": "2"})); len(now)+len(restart) > 0 {
		t.Errorf("equal ones differ in %v, %v", now, restart)
	}
	now, restart := ChangedKeys(before, read("limits: {max_audience: 7, notifications_per_second: 8}\nlog: {level: warn, format: json}\nsink: {url: 'postgres://u:${A}@h/de'}", Env{"A": "zz9"}))
	if want := []string{"limits.max_audience", "limits.notifications_per_second", "log.level"}; !slices.Equal(now, want) {
		t.Errorf("at once: %v, want %v", now, want)
	}
	if want := []string{"log.format", "sink.url"}; !slices.Equal(restart, want) {
		t.Errorf("with a restart: %v, want %v", restart, want)
	}
}

func TestFileMayBeAbsentOnlyByDefault(t *testing.T) {
	t.Chdir(t.TempDir())
	cfg, err := Load("", Env{})
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "there is no dinnerbell.yaml in this directory") {
		t.Errorf("error %v does not say that no file was read", err)
	}
	cfg, err = Load("", Env{"DINNERBELL_SOURCE_URL": "postgres://a/b", "DINNERBELL_KAFKA_BROKERS": "k:1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Errorf("the environment alone is enough: %v", err)
	}
	if _, err := Load("other.yaml", Env{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a named file that is absent: %v", err)
	}
}
