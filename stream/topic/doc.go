// Package topic reads Kafka: partitions record by record, and the progress that
// lanes keep in a topic.
package topic
