package cdc

import (
	"cmp"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/pgoutput"
)

// Config says which table is mirrored and through what.
type Config struct {
	// URL gives the connection string. It is called before every connection is
	// made, so that rotated credentials are picked up.
	URL func() (string, error)

	// Schema and Table name the table as the catalog spells it, unquoted.
	Schema, Table string
	// The columns that are read; all others of the table are ignored. The key
	// columns together tell rows apart: one, or several for a composite key.
	// Types are of no importance.
	KeyColumns                     []string
	ClientColumn, RestaurantColumn string

	Publication string
	// Slot is ours alone: it is dropped and made again for each snapshot.
	Slot string
	// ApplicationName is what Postgres shows of the connections. New appends the
	// id of the store's directory, which tells this instance from all others:
	// a backend of the whole name that holds the slot is our own leftover and is
	// ended, any other is left alone. Cut to 63 bytes; default "dinnerbell".
	ApplicationName string

	// HaltOnLost: where the stream cannot bring the local state forward any more,
	// Run returns a *halt.Error instead of taking a new snapshot over a complete one.
	HaltOnLost bool

	// Freshness is what Barrier waits for; default Strict.
	Freshness Freshness
	// MaxStaleness is for Bounded; default 5 s.
	MaxStaleness time.Duration

	// CheckpointEvery is how often a checkpoint of the state is made. The slot is
	// then acknowledged no further than the newest stands for. 0: none is made,
	// and what is durable is acknowledged.
	CheckpointEvery time.Duration
	// NextOffsets gives what the checkpoints note beside the rows: the next
	// offsets of the input, by partition. It may be nil.
	NextOffsets func() map[int32]int64

	// Logger takes what an operator wants to know; default none.
	Logger *slog.Logger

	timelines *timelineHistory // shared by copies

	// For tests, which have no large tables and no time; 0: the constants of these names.
	parallelBytes, rangeBytes int64
	copyConnections           int
	forgotten                 time.Duration
}

// maxIdentifier is NAMEDATALEN-1.
const maxIdentifier = 63

// slotNamePattern is what Postgres allows, so that a slot name is safe in replication
// commands, where nothing can be quoted.
var slotNamePattern = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// withDefaults fills in what may be left out.
func (c Config) withDefaults() Config {
	c.ApplicationName = cmp.Or(c.ApplicationName, "dinnerbell")
	c.ApplicationName = c.ApplicationName[:min(len(c.ApplicationName), maxIdentifier)]
	c.timelines = &timelineHistory{}
	c.MaxStaleness = cmp.Or(c.MaxStaleness, 5*time.Second)
	c.copyConnections = cmp.Or(c.copyConnections, copyConnections)
	c.parallelBytes = cmp.Or(c.parallelBytes, parallelBytes)
	c.forgotten = cmp.Or(c.forgotten, forgotten)
	c.rangeBytes = cmp.Or(c.rangeBytes, rangeBytes)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// validate finds what no server could serve.
func (c *Config) validate() error {
	if c.URL == nil {
		return fmt.Errorf("check source configuration: no URL")
	}
	if !slotNamePattern.MatchString(c.Slot) {
		return newHalt("set source.slot to lower-case letters, digits and underscores", "slot name %q is not possible in Postgres", c.Slot)
	}
	for what, name := range map[string]string{
		"schema": c.Schema, "table": c.Table, "publication": c.Publication,
		"key column": strings.Join(c.KeyColumns, ""), "client column": c.ClientColumn, "restaurant column": c.RestaurantColumn,
	} {
		if name == "" {
			return fmt.Errorf("check source configuration: no %s", what)
		}
	}
	return nil
}

// neededColumns gives the needed columns, indexed by KeyColumn, RestaurantColumn, ClientColumn;
// what a composite key has more of follows. Validate has found a first one.
func (c *Config) neededColumns() []string {
	return append([]string{pgoutput.KeyColumn: c.KeyColumns[0], pgoutput.RestaurantColumn: c.RestaurantColumn, pgoutput.ClientColumn: c.ClientColumn}, c.KeyColumns[1:]...)
}

// quotedKey is the quoted list of the key columns.
func (c *Config) quotedKey() string { return quoteList(c.KeyColumns) }

// quotedColumns is the quoted list of the needed columns, each once.
func (c *Config) quotedColumns() string {
	names := c.neededColumns()
	slices.Sort(names)
	return quoteList(slices.Compact(names))
}

func quoteList(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = pgx.Identifier{name}.Sanitize()
	}
	return strings.Join(quoted, ", ")
}

// quotedTable is the quoted, qualified name.
func (c *Config) quotedTable() string { return pgx.Identifier{c.Schema, c.Table}.Sanitize() }

// quotedPublication is the quoted name.
func (c *Config) quotedPublication() string { return pgx.Identifier{c.Publication}.Sanitize() }
