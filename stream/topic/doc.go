// Package topic is dinnerbell's side of Kafka: the clients, the topics' ids, limits
// and preconditions, the topics' setup, and the progress that lanes keep in a topic.
package topic
