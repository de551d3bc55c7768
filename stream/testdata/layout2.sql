-- The daemon's tables of layout 2, as setup made them. Kept for TestSetupBringsEachLayoutUp.
CREATE SCHEMA IF NOT EXISTS dinnerbell;
CREATE TABLE IF NOT EXISTS dinnerbell.lane (
  lane int4 NOT NULL PRIMARY KEY,
  epoch int8 NOT NULL DEFAULT 0,           -- counts owners
  seq int8 NOT NULL DEFAULT 0,             -- P: the last decided step
  next_offset int8 NOT NULL,               -- of the campaigns partition
  cluster_id text NOT NULL,                -- the Kafka that the positions count in
  campaigns_topic_id text NOT NULL,
  notifications_topic_id text NOT NULL,
  progress_topic_id text NOT NULL,
  shipped int8 NOT NULL DEFAULT 0,         -- K as of the last step: the progress topic may be ahead, never behind
  notifications_ends int8[] NOT NULL DEFAULT '{}', -- per partition: the notifications topic reached this end, it may never be shorter
  notified int8 NOT NULL DEFAULT 0,        -- notifications decided so far
  expired int8 NOT NULL DEFAULT 0,         -- campaigns that were over on arrival
  dead int8 NOT NULL DEFAULT 0             -- messages refused
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS dinnerbell.campaign (
  adv_campaign_id text NOT NULL,
  restaurant_id text NOT NULL,
  lane int4 NOT NULL,                      -- delivers it
  version int8 NOT NULL,                   -- raised whenever something else is to be delivered
  msg_lane int4 NOT NULL,                  -- of the newest message, an identical repeat too: its partition,
  msg_offset int8 NOT NULL,                -- its offset
  msg_time int8 NOT NULL,                  -- and its time in milliseconds, as Kafka gave it
  fingerprint bytea NOT NULL,              -- of all eight fields: an identical repeat is seen as one
  adv_campaign_content text NOT NULL,
  adv_campaign_owner text NOT NULL,
  adv_campaign_owner_contact text NOT NULL,
  adv_campaign_datetime_start int8 NOT NULL,
  adv_campaign_datetime_end int8 NOT NULL,
  datetime_created int8 NOT NULL,
  state text NOT NULL CHECK (state IN ('pending', 'finished', 'expired')),
  cursor bytea NOT NULL,                   -- packed id of the last client looked at
  contested boolean NOT NULL,              -- somebody may have been notified before this version
  accepted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (adv_campaign_id, restaurant_id)
) WITH (fillfactor = 70);
CREATE INDEX IF NOT EXISTS campaign_pending ON dinnerbell.campaign (lane, adv_campaign_datetime_start) WHERE state = 'pending';
CREATE TABLE IF NOT EXISTS dinnerbell.outbox (
  lane int4 NOT NULL,
  seq int8 NOT NULL,
  notifications int4 NOT NULL,
  payload bytea NOT NULL,
  PRIMARY KEY (lane, seq)
);
ALTER TABLE dinnerbell.outbox ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS dinnerbell.layout (version int4 NOT NULL);
INSERT INTO dinnerbell.layout SELECT 2 WHERE NOT EXISTS (SELECT FROM dinnerbell.layout);
