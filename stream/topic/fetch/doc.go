// Package fetch reads the committed records of Kafka partitions with raw fetches,
// batch by batch, in bounded memory and past damaged batches.
package fetch
