//! What a server answered, taken for what it should be.

use redis::Value;

pub(super) fn items(value: &Value) -> Option<&[Value]> {
    if let Value::Array(items) = value { Some(items) } else { None }
}

pub(super) fn bytes(value: &Value) -> Option<&[u8]> {
    if let Value::BulkString(bytes) = value { Some(bytes) } else { None }
}

pub(super) fn text(value: &Value) -> Option<&str> {
    if let Value::SimpleString(text) = value {
        return Some(text);
    }
    std::str::from_utf8(bytes(value)?).ok()
}

pub(super) fn integer(value: &Value) -> Option<i64> {
    if let Value::Int(number) = value { Some(*number) } else { text(value)?.parse().ok() }
}
