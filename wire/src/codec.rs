//! Control messages to bytes and back (rkyv, validated before use).

/// Encodes a control message. Failure would mean out of memory.
#[macro_export]
macro_rules! encode {
    ($value:expr) => {
        $crate::rkyv::to_bytes::<$crate::rkyv::rancor::Error>($value)
            .expect("control messages always serialise")
    };
}

/// Decodes a control message after validation; the error says what is wrong with the bytes.
#[macro_export]
macro_rules! decode {
    ($type:ty, $bytes:expr) => {
        $crate::rkyv::from_bytes::<$type, $crate::rkyv::rancor::Error>($bytes)
            .map_err(|e| format!("{}: {e}", stringify!($type)))
    };
}
