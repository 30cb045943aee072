//! Ranges of numbers, and the types that hold a number of one.

use std::fmt::{self, Display, Formatter};
use std::ops::Bound;

use schemars::{Schema, json_schema};

/// The numbers that an option may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Finite numbers between two bounds.
    Real(Bound<f64>, Bound<f64>),
    /// Whole numbers, both ends included.
    Whole(u64, u64),
    /// Odd whole numbers, both ends included.
    Odd(u64, u64),
}

/// A number that was found where another was expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Any.
    Real(f64),
    /// A whole one.
    Whole(u64),
}

/// A number outside of its range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub struct OutOfRange {
    /// The range.
    pub expected: Range,
    /// The number.
    pub found: Number,
}

impl Range {
    /// Whether a number is one of them.
    pub const fn contains(&self, number: Number) -> bool {
        match (*self, number) {
            (Self::Real(min, max), Number::Real(value)) => {
                let above = match min {
                    Bound::Included(min) => value >= min,
                    Bound::Excluded(min) => value > min,
                    Bound::Unbounded => true,
                };
                let below = match max {
                    Bound::Included(max) => value <= max,
                    Bound::Excluded(max) => value < max,
                    Bound::Unbounded => true,
                };
                value.is_finite() && above && below
            }
            (Self::Whole(min, max), Number::Whole(value)) => min <= value && value <= max,
            (Self::Odd(min, max), Number::Whole(value)) => min <= value && value <= max && value % 2 == 1,
            (Self::Real(..), Number::Whole(_)) | (Self::Whole(..) | Self::Odd(..), Number::Real(_)) => false,
        }
    }

    /// As JSON Schema.
    pub(super) fn schema(&self) -> Schema {
        let (mut schema, whole) = match *self {
            Self::Real(..) => (json_schema!({ "type": "number" }), None),
            Self::Whole(min, max) => (json_schema!({ "type": "integer" }), Some((min, max))),
            Self::Odd(min, max) => (json_schema!({ "type": "integer", "not": { "multipleOf": 2 } }), Some((min, max))),
        };
        if let Some((min, max)) = whole {
            schema.insert("minimum".into(), min.into());
            schema.insert("maximum".into(), max.into());
        }
        if let Self::Real(min, max) = *self {
            for (bound, included, excluded) in
                [(min, "minimum", "exclusiveMinimum"), (max, "maximum", "exclusiveMaximum")]
            {
                match bound {
                    Bound::Included(bound) => schema.insert(included.into(), bound.into()),
                    Bound::Excluded(bound) => schema.insert(excluded.into(), bound.into()),
                    Bound::Unbounded => None,
                };
            }
        }
        schema
    }
}

impl Display for Range {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // 0.3333333333333333 is not what anybody means.
        let shown = |bound: f64| if bound == 1.0 / 3.0 { "1/3".to_string() } else { bound.to_string() };
        match *self {
            Self::Real(Bound::Unbounded, Bound::Unbounded) => f.write_str("a finite number"),
            Self::Real(Bound::Excluded(min), Bound::Unbounded) => write!(f, "a number above {}", shown(min)),
            Self::Real(Bound::Included(min), Bound::Unbounded) => write!(f, "a number of at least {}", shown(min)),
            Self::Real(min, max) => {
                let (open, min) = match min {
                    Bound::Included(min) => ('[', shown(min)),
                    Bound::Excluded(min) => ('(', shown(min)),
                    Bound::Unbounded => ('(', "-inf".into()),
                };
                let (max, close) = match max {
                    Bound::Included(max) => (shown(max), ']'),
                    Bound::Excluded(max) => (shown(max), ')'),
                    Bound::Unbounded => ("inf".into(), ')'),
                };
                write!(f, "a number in {open}{min}, {max}{close}")
            }
            Self::Whole(min, max) => write!(f, "{min} to {max}"),
            Self::Odd(min, max) => write!(f, "an odd number from {min} to {max}"),
        }
    }
}

impl Display for Number {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Real(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
        }
    }
}

/// A type that holds a number of a range and nothing else.
macro_rules! ranged {
    ($(#[$doc:meta])* $name:ident($number:ty as $kind:ident): $range:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
        pub struct $name($number);

        impl $name {
            /// What it may be.
            pub const RANGE: $crate::ranges::Range = $range;

            /// The number, if it is in the range.
            pub const fn new(value: $number) -> Result<Self, $crate::ranges::OutOfRange> {
                let found = $crate::ranges::Number::$kind(value as _);
                match Self::RANGE.contains(found) {
                    true => Ok(Self(value)),
                    false => Err($crate::ranges::OutOfRange { expected: Self::RANGE, found }),
                }
            }

            /// A number that stands in the source, for constants: one outside of the range does not compile in `const { .. }`,
            /// and panics elsewhere.
            #[allow(clippy::panic, reason = "it refuses to compile")]
            pub const fn literal(value: $number) -> Self {
                match Self::new(value) {
                    Ok(value) => value,
                    Err(_) => panic!("out of range"),
                }
            }

            /// The number.
            pub const fn get(self) -> $number {
                self.0
            }
        }

        impl TryFrom<$number> for $name {
            type Error = $crate::ranges::OutOfRange;

            fn try_from(value: $number) -> Result<Self, Self::Error> {
                Self::new(value)
            }
        }

        impl From<$name> for $number {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(to)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::new(<$number>::deserialize(from)?).map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                Self::RANGE.schema()
            }
        }
    };
}

pub(super) use ranged;
