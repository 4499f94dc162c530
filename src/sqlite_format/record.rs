//! The header of a record, and the values of its columns (File Format 2.1).

use super::varint;

/// A record with more columns is taken as noise.
const COLUMNS_MAX: usize = 32;

/// The type of a column's value, as the header of the record states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SerialType(u64);

impl SerialType {
    pub(crate) fn is_null(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn is_integer(self) -> bool {
        matches!(self.0, 1..=6 | 8 | 9)
    }

    /// Returns whether it is one of the constants 0 and 1, which have no bytes of their own.
    pub(crate) fn is_boolean(self) -> bool {
        matches!(self.0, 8 | 9)
    }

    pub(crate) fn is_blob(self) -> bool {
        self.0 >= 12 && self.0.is_multiple_of(2)
    }

    pub(crate) fn is_text(self) -> bool {
        self.0 >= 13 && !self.0.is_multiple_of(2)
    }

    pub(crate) fn is_text_or_null(self) -> bool {
        self.is_null() || self.is_text()
    }

    /// Returns how many bytes the value has.
    pub(crate) fn value_bytes(self) -> u64 {
        match self.0 {
            1..=4 => self.0,
            5 => 6,
            6 | 7 => 8,
            12.. => (self.0 - 12) / 2,
            _ => 0,
        }
    }
}

/// Reads the types of a record from the beginning of its payload; `None` if they do not add up to `payload_bytes`.
pub(crate) fn types(local: &[u8], payload_bytes: u64) -> Option<Vec<SerialType>> {
    let (header_bytes, mut next) = varint(local, 0)?;
    let mut types = Vec::new();
    let mut bytes = header_bytes;
    while (next as u64) < header_bytes {
        let (serial, after) = varint(local, next)?;
        // 10 and 11 are reserved.
        if matches!(serial, 10 | 11) || types.len() == COLUMNS_MAX {
            return None;
        }
        bytes = bytes.checked_add(SerialType(serial).value_bytes())?;
        types.push(SerialType(serial));
        next = after;
    }
    (next as u64 == header_bytes && bytes == payload_bytes).then_some(types)
}

/// The value of a column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ColumnValue {
    Null,
    Integer(i64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
    /// A floating-point number, which no column that is read here has: its value is not decoded.
    Real,
}

impl ColumnValue {
    pub(crate) fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub(crate) fn blob(&self) -> Option<&[u8]> {
        match self {
            Self::Blob(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// Reads the values of a record.
pub(crate) fn values(payload: &[u8]) -> Option<Vec<ColumnValue>> {
    let types = types(payload, payload.len() as u64)?;
    let mut at = usize::try_from(varint(payload, 0)?.0).ok()?;
    let mut values = Vec::with_capacity(types.len());
    for serial in types {
        let bytes = payload.get(at..at.checked_add(usize::try_from(serial.value_bytes()).ok()?)?)?;
        at += bytes.len();
        values.push(match serial.0 {
            0 => ColumnValue::Null,
            8 => ColumnValue::Integer(0),
            9 => ColumnValue::Integer(1),
            1..=6 => {
                let is_negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
                let start = if is_negative { -1_i64 } else { 0 };
                ColumnValue::Integer(bytes.iter().fold(start, |number, byte| number << 8 | i64::from(*byte)))
            }
            7 => ColumnValue::Real,
            _ if serial.is_blob() => ColumnValue::Blob(bytes.to_vec()),
            _ => ColumnValue::Text(bytes.to_vec()),
        });
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_one_value_for_each_type_of_its_header() {
        // Null, -2 in one byte, 256 in two, one, "ab", a blob of one byte, a number with a fraction.
        let header = [8, 0, 1, 2, 9, 17, 14, 7];
        let mut payload = header.to_vec();
        payload.extend([0xfe, 1, 0, b'a', b'b', 0xff]);
        payload.extend([0; 8]);
        let found = values(&payload).expect("it is a record");
        assert_eq!(
            found,
            [
                ColumnValue::Null,
                ColumnValue::Integer(-2),
                ColumnValue::Integer(256),
                ColumnValue::Integer(1),
                ColumnValue::Text(b"ab".to_vec()),
                ColumnValue::Blob(vec![0xff]),
                ColumnValue::Real,
            ]
        );
        for cut in 0..payload.len() {
            assert_eq!(values(&payload[..cut]), None, "a record of {cut} bytes");
        }
        payload[3] = 10;
        assert_eq!(values(&payload), None, "a reserved type");
    }
}
