// Package source is the database that a table is mirrored from.
//
// A [DB], opened once from a [Config], dials ordinary connections and walsenders,
// and reads the catalogs, the identity of the source, the replication slot and the
// timelines. It keeps no connection: whoever dials one owns it. [DB.Inspect] and
// [CheckPreconditions] check whether the table can be mirrored; [Setup] makes the
// publication; [SlotLock] keeps a second daemon off the slot.
package source
