//! How large a message's properties are as they are sent. They must fit into one frame: the broker ends the connection, with all that
//! it holds, of whoever sends a larger one, and the client does not look.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// A frame's type, channel, size and end (AMQP 0-9-1, 4.2.3).
const FRAME: usize = 1 + 2 + 4 + 1;
/// What stands before the properties in a content header: class, weight, body size and flags (AMQP 0-9-1, 4.2.6.1).
const BEFORE: usize = 2 + 2 + 8 + 2;

/// The frame that carries these properties.
pub(super) fn of_frame(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(of_name).sum();
    let bytes = [properties.delivery_mode(), properties.priority()].into_iter().flatten().count();
    let timestamp = if properties.timestamp().is_some() { 8 } else { 0 };
    FRAME + BEFORE + texts + bytes + timestamp + properties.headers().as_ref().map_or(0, of_table)
}

fn of_name(name: &ShortString) -> usize {
    1 + name.as_str().len()
}

fn of_table(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| of_name(name) + of_value(value)).sum::<usize>()
}

/// A value, with the letter that says its type.
fn of_value(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => of_name(text),
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(of_value).sum::<usize>(),
        AMQPValue::FieldTable(table) => of_table(table),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use lapin::protocol::basic::gen_properties;

    use super::*;

    #[test]
    fn it_is_what_the_client_writes() {
        let mut inner = FieldTable::default();
        inner.insert("inner".into(), AMQPValue::LongString("text".into()));
        let values = [
            AMQPValue::Boolean(true),
            AMQPValue::ShortInt(1),
            AMQPValue::LongInt(1),
            AMQPValue::LongLongInt(1),
            AMQPValue::Double(1.0),
            AMQPValue::Timestamp(1),
            AMQPValue::Void,
            AMQPValue::LongString("x".repeat(300).into()),
            AMQPValue::ByteArray(vec![1, 2, 3].into()),
            AMQPValue::FieldArray(vec![AMQPValue::Float(1.0), AMQPValue::ShortShortUInt(1)].into()),
            AMQPValue::FieldTable(inner),
        ];
        let mut table = FieldTable::default();
        for (index, value) in values.into_iter().enumerate() {
            table.insert(format!("header-{index}").into(), value);
        }
        let all = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_message_id("r1".into())
            .with_delivery_mode(2)
            .with_timestamp(1_700_000_000)
            .with_headers(table);
        for properties in [BasicProperties::default(), all] {
            let mut room = [0; 1024];
            let written = gen_properties(&properties)(Cursor::new(&mut room[..]).into()).expect("writes").position;
            // The flags are among what is written.
            assert_eq!(of_frame(&properties), FRAME + BEFORE - 2 + written as usize);
        }
    }
}
