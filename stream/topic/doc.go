// Package topic is dinnerbell's side of Kafka: the client, the topics' ids, limits
// and preconditions, the topics' setup, the reading of partitions, and the progress
// that lanes keep in a topic.
package topic
