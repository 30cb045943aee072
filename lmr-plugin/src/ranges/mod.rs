//! Numbers that options are made of, each a type whose values are the possible ones. What is out of range cannot be constructed,
//! so nothing has to be checked where an option is used.
//!
//! ```
//! use lmr_plugin::ranges::{BelowOne, Count, Positive};
//!
//! const LR: Positive = Positive::literal(0.03);
//! assert_eq!(Count::new(0).unwrap_err().to_string(), "expected 1 to 1000000, found 0");
//! assert_eq!(BelowOne::new(1.5).unwrap_err().to_string(), "expected a number in [0, 1), found 1.5");
//! assert!(Positive::new(f64::INFINITY).is_err());
//! # assert_eq!(LR.get(), 0.03);
//! ```
//!
//! A constant out of range does not compile:
//!
//! ```compile_fail
//! use lmr_plugin::ranges::Count;
//! const NONE: Count = Count::literal(0);
//! ```

mod range;
mod shares;

use std::ops::Bound::{Excluded, Included, Unbounded};

pub use range::{Number, OutOfRange, Range};
pub use shares::{NotAscending, Shares};

use Range::{Odd, Real, Whole};
use range::ranged;

ranged! {
    /// A finite number.
    Finite(f64 as Real): Real(Unbounded, Unbounded)
}

ranged! {
    /// A finite number above 0: learning rates, temperatures, margins.
    Positive(f64 as Real): Real(Excluded(0.0), Unbounded)
}

ranged! {
    /// A finite number of at least 0: weights in a loss.
    NonNegative(f64 as Real): Real(Included(0.0), Unbounded)
}

ranged! {
    /// A share, in [0, 1].
    Fraction(f64 as Real): Real(Included(0.0), Included(1.0))
}

ranged! {
    /// A share that leaves something, in [0, 1): momentum, ratios of pruning.
    BelowOne(f64 as Real): Real(Included(0.0), Excluded(1.0))
}

ranged! {
    /// A share that is something, in (0, 1].
    AboveZero(f64 as Real): Real(Excluded(0.0), Included(1.0))
}

ranged! {
    /// A share that is something and leaves something, in (0, 1).
    OpenFraction(f64 as Real): Real(Excluded(0.0), Excluded(1.0))
}

impl From<OpenFraction> for BelowOne {
    fn from(share: OpenFraction) -> Self {
        Self(share.0)
    }
}

ranged! {
    /// A share that fits three times into a whole, in (0, 1/3].
    UpToThird(f64 as Real): Real(Excluded(0.0), Included(1.0 / 3.0))
}

ranged! {
    /// Periods across an image, in (0, 4096]: no more than the pixels that any image here has.
    Periods(f64 as Real): Real(Excluded(0.0), Included(4096.0))
}

ranged! {
    /// A difference of pixels in steps of 1/255, in (0, 255].
    Levels(f64 as Real): Real(Excluded(0.0), Included(255.0))
}

ranged! {
    /// A percentage of what lies in the middle, in (50, 100].
    Percentile(f64 as Real): Real(Excluded(50.0), Included(100.0))
}

ranged! {
    /// How strong a warp is, in [0, 100].
    WarpStrength(f64 as Real): Real(Included(0.0), Included(100.0))
}

ranged! {
    /// How many there are, at least one.
    #[derive(Eq, Ord)]
    Count(usize as Whole): Whole(1, 1_000_000)
}

ranged! {
    /// How many times something is done that may be left out: epochs, steps, rounds.
    #[derive(Eq, Ord)]
    Times(usize as Whole): Whole(0, 1_000_000)
}

impl From<Count> for Times {
    fn from(count: Count) -> Self {
        Self(count.0)
    }
}

ranged! {
    /// How many images, at least the two that batch norm and comparisons need.
    #[derive(Eq, Ord)]
    AtLeastTwo(usize as Whole): Whole(2, 1_000_000)
}

ranged! {
    /// How many vote, so that two sides never tie.
    #[derive(Eq, Ord)]
    Votes(usize as Whole): Odd(1, 999)
}

ranged! {
    /// Bits of an integer weight.
    #[derive(Eq, Ord)]
    Bits(u32 as Whole): Whole(2, 8)
}

ranged! {
    /// A length in pixels that may be nothing.
    #[derive(Eq, Ord)]
    Pixels(usize as Whole): Whole(0, 65_535)
}

ranged! {
    /// The side of something in pixels.
    #[derive(Eq, Ord)]
    Side(usize as Whole): Whole(1, 65_535)
}

ranged! {
    /// An angle to either side in degrees.
    #[derive(Eq, Ord)]
    Degrees(u32 as Whole): Whole(0, 180)
}

ranged! {
    /// Rows and columns of a coarse grid.
    #[derive(Eq, Ord)]
    GridSize(usize as Whole): Whole(2, 64)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use schemars::JsonSchema;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn read<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
        serde_json::from_value(value.clone()).map_err(|error| error.to_string())
    }

    fn both<T: DeserializeOwned + JsonSchema + serde::Serialize>(inside: &[f64], outside: &[f64]) {
        for value in inside {
            let read: T = read(&json!(value)).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), json!(value));
        }
        for value in outside {
            let message = read::<T>(&json!(value)).err().unwrap();
            assert!(message.starts_with("expected a ") && message.ends_with(&format!(", found {value}")), "{message}");
        }
    }

    #[test]
    fn ends_belong_or_do_not() {
        const TINY: f64 = f64::MIN_POSITIVE;
        const NEARLY: f64 = 1.0 - f64::EPSILON;
        const BEYOND: f64 = 1.0 + f64::EPSILON;
        both::<Finite>(&[f64::MIN, f64::MAX], &[]);
        both::<Positive>(&[TINY, f64::MAX], &[0.0, -TINY]);
        both::<NonNegative>(&[0.0, f64::MAX], &[-TINY]);
        both::<Fraction>(&[0.0, 1.0], &[-TINY, BEYOND]);
        both::<BelowOne>(&[0.0, NEARLY], &[-TINY, 1.0]);
        both::<AboveZero>(&[TINY, 1.0], &[0.0, BEYOND]);
        both::<OpenFraction>(&[TINY, NEARLY], &[0.0, 1.0]);
        both::<UpToThird>(&[TINY, 1.0 / 3.0], &[0.0, 0.334]);
        both::<Periods>(&[TINY, 4096.0], &[0.0, 4096.1]);
        both::<Levels>(&[TINY, 255.0], &[0.0, 255.1]);
        both::<Percentile>(&[50.1, 100.0], &[50.0, 100.1]);
        both::<WarpStrength>(&[0.0, 100.0], &[-1.0, 100.1]);
    }

    #[rstest]
    #[case(f64::NAN)]
    #[case(f64::INFINITY)]
    #[case(f64::NEG_INFINITY)]
    fn numbers_are_finite(#[case] value: f64) {
        assert_eq!(Finite::new(value).unwrap_err().to_string(), format!("expected a finite number, found {value}"));
        assert!(Positive::new(value).is_err() && NonNegative::new(value).is_err() && Fraction::new(value).is_err());
    }

    #[rstest]
    #[case(json!(1), Ok(1))]
    #[case(json!(1_000_000), Ok(1_000_000))]
    #[case(json!(0), Err("expected 1 to 1000000, found 0"))]
    #[case(json!(4_294_967_296u64), Err("expected 1 to 1000000, found 4294967296"))]
    #[case(json!(u64::MAX), Err("expected 1 to 1000000, found 18446744073709551615"))]
    #[case(json!(-1), Err("invalid value: integer `-1`, expected usize"))]
    #[case(json!(1.5), Err("invalid type: floating point `1.5`, expected usize"))]
    fn counts_are_bounded(#[case] value: Value, #[case] expected: Result<usize, &str>) {
        assert_eq!(read::<Count>(&value).map(Count::get), expected.map_err(String::from));
    }

    #[test]
    fn votes_are_odd() {
        assert_eq!(Votes::new(999).map(Votes::get), Ok(999));
        for even in [0, 2, 1001] {
            let message = Votes::new(even).unwrap_err().to_string();
            assert_eq!(message, format!("expected an odd number from 1 to 999, found {even}"));
        }
    }

    #[rstest]
    #[case(Positive::RANGE, json!({ "type": "number", "exclusiveMinimum": 0.0 }), "a number above 0")]
    #[case(NonNegative::RANGE, json!({ "type": "number", "minimum": 0.0 }), "a number of at least 0")]
    #[case(BelowOne::RANGE, json!({ "type": "number", "minimum": 0.0, "exclusiveMaximum": 1.0 }), "a number in [0, 1)")]
    #[case(UpToThird::RANGE, json!({ "type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0 / 3.0 }), "a number in (0, 1/3]")]
    #[case(Bits::RANGE, json!({ "type": "integer", "minimum": 2, "maximum": 8 }), "2 to 8")]
    #[case(Votes::RANGE, json!({ "type": "integer", "not": { "multipleOf": 2 }, "minimum": 1, "maximum": 999 }), "an odd number from 1 to 999")]
    fn ranges_are_described(#[case] range: Range, #[case] schema: Value, #[case] words: &str) {
        assert_eq!(range.schema().to_value(), schema);
        assert_eq!(range.to_string(), words);
    }
}
