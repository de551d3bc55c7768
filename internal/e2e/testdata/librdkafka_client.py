"""Writes each line of the input into a topic, or prints all records of a topic.

    librdkafka_client.py write|read TOPIC NAME=VALUE...

The settings are librdkafka's. A record is printed as KEY|VALUE.
"""
import sys

from confluent_kafka import Consumer, KafkaError, Producer


def write(topic, settings):
    failures = []
    producer = Producer(settings)
    for line in sys.stdin.buffer:
        producer.produce(topic, value=line.rstrip(b"\n"), on_delivery=lambda error, _: failures.extend([error] if error else []))
    if producer.flush(60) or failures:
        sys.exit(f"not delivered: {failures}")


def read(topic, settings):
    consumer = Consumer({**settings, "enable.partition.eof": True})
    consumer.subscribe([topic])
    assigned, ended = set(), set()
    while not assigned or ended < assigned:
        record = consumer.poll(1)
        assigned = {p.partition for p in consumer.assignment()}
        if record is None:
            continue
        error = record.error()
        if error is None:
            sys.stdout.buffer.write(record.key() + b"|" + record.value() + b"\n")
        elif error.code() == KafkaError._PARTITION_EOF:
            ended.add(record.partition())
        else:
            sys.exit(f"{error}")
    consumer.close()


{"write": write, "read": read}[sys.argv[1]](sys.argv[2], dict(a.split("=", 1) for a in sys.argv[3:]))
