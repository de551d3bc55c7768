package source

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
	"dinnerbell/internal/postgres"
)

// Config names the table that is mirrored, and how to reach it.
type Config struct {
	// URL returns the connection string. It is called before every connection is
	// made, so that rotated credentials are picked up.
	URL func() (string, error)

	// Schema and Table name the table as the catalog spells it, unquoted.
	Schema, Table string
	// KeyColumns, ClientColumn and RestaurantColumn are the columns that are read;
	// all others of the table are ignored. The key columns together tell rows
	// apart: one, or several for a composite key. Types are of no importance.
	KeyColumns                     []string
	ClientColumn, RestaurantColumn string

	Publication string
	// Slot belongs to this mirror alone: it is dropped and made again for each
	// snapshot.
	Slot string
	// ApplicationName is the name that Postgres shows of the connections. A backend
	// of exactly this name that holds the slot is a leftover of an earlier run and
	// is ended; any other is left alone. Cut to 63 bytes; default "dinnerbell".
	ApplicationName string
	// Checkpoints: the slot is acknowledged no further than a checkpoint of the
	// state. It changes what the check of max_slot_wal_keep_size warns of.
	Checkpoints bool

	// Logger receives the events that concern an operator; default none.
	Logger *slog.Logger

	// ForgottenAfter is set by tests, which have no time; 0: forgottenAfter.
	ForgottenAfter time.Duration
}

// slotNamePattern is the form that Postgres allows, so that a slot name is safe in
// replication commands, where nothing can be quoted
// (https://www.postgresql.org/docs/current/warm-standby.html#STREAMING-REPLICATION-SLOTS-MANIPULATION).
var slotNamePattern = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// CheckSlotName returns an error for a name that no replication slot can have.
func CheckSlotName(name string) error {
	if !slotNamePattern.MatchString(name) {
		return fmt.Errorf("%q: a slot's name is 1 to %d of a-z, 0-9 and _", name, postgres.MaxIdentifier)
	}
	return nil
}

// withDefaults fills in the fields that may be left out.
func (c Config) withDefaults() Config {
	c.ApplicationName = cmp.Or(c.ApplicationName, "dinnerbell")
	c.ApplicationName = c.ApplicationName[:min(len(c.ApplicationName), postgres.MaxIdentifier)]
	c.ForgottenAfter = cmp.Or(c.ForgottenAfter, forgottenAfter)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// ForInstance returns the configuration with an application_name that no other
// instance has: the id of the store's directory is appended to it.
func (c Config) ForInstance(instance string) Config {
	name := cmp.Or(c.ApplicationName, "dinnerbell")
	c.ApplicationName = name[:min(len(name), postgres.MaxIdentifier-1-len(instance))] + "-" + instance
	return c
}

// validate returns an error for a configuration that no server could serve.
func (c *Config) validate() error {
	if c.URL == nil {
		return fmt.Errorf("check source configuration: no URL")
	}
	if CheckSlotName(c.Slot) != nil {
		return NewHalt("set source.slot to lower-case letters, digits and underscores", "slot name %q is not possible in Postgres", c.Slot)
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

// neededColumns returns the needed columns, indexed by KeyColumn, RestaurantColumn
// and ClientColumn; the further columns of a composite key follow. validate has
// found a first key column.
func (c *Config) neededColumns() []string {
	return append([]string{pgoutput.KeyColumn: c.KeyColumns[0], pgoutput.RestaurantColumn: c.RestaurantColumn, pgoutput.ClientColumn: c.ClientColumn}, c.KeyColumns[1:]...)
}

// QuotedKey is the quoted list of the key columns.
func (c *Config) QuotedKey() string { return quoteList(c.KeyColumns) }

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

// QuotedTable is the quoted, qualified name of the table.
func (c *Config) QuotedTable() string { return pgx.Identifier{c.Schema, c.Table}.Sanitize() }

// QuotedPublication is the quoted name of the publication.
func (c *Config) QuotedPublication() string { return pgx.Identifier{c.Publication}.Sanitize() }
