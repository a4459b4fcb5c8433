//! How `builtins.toJSON` writes floating-point numbers.
//!
//! Stock Nix has nlohmann's JSON library write them, which uses the algorithm Grisu2 (F. Loitsch, "Printing
//! Floating-Point Numbers Quickly and Accurately with Integers", 2010). Its digits always read back as the same
//! number, but once in three hundred times they are not the shortest or not the closest that do: 5922.18741 is
//! written as 5922.1874100000005. As the text may end up in a derivation, it must be the same here, so this is
//! Grisu2 with the parameters and the rounding of that library.

/// A number as JSON; `null` for what JSON does not have (infinities, NaN).
///
/// ```
/// use tvix_node_evaluator::pure::json_float::text;
///
/// assert_eq!(text(1.0), "1.0");
/// assert_eq!(text(-0.25), "-0.25");
/// assert_eq!(text(1e100), "1e+100");
/// ```
pub fn text(number: f64) -> String {
    if !number.is_finite() {
        return "null".to_owned();
    }
    let sign = if number.is_sign_negative() { "-" } else { "" };
    if number == 0.0 {
        return format!("{sign}0.0");
    }
    let (digits, exponent) = grisu2(number.abs());
    // Where the decimal point is among the digits.
    let point = digits.len() as i32 + exponent;
    if exponent >= 0 && point <= 15 {
        format!("{sign}{digits}{}.0", "0".repeat(exponent as usize))
    } else if (1..=15).contains(&point) {
        let (whole, fraction) = digits.split_at(point as usize);
        format!("{sign}{whole}.{fraction}")
    } else if (-3..=0).contains(&point) {
        format!("{sign}0.{}{digits}", "0".repeat(-point as usize))
    } else {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let direction = if point > 0 { '+' } else { '-' };
        format!("{sign}{first}{dot}{rest}e{direction}{:02}", (point - 1).abs())
    }
}

/// `fraction · 2^exponent`, with 64 bits of precision.
#[derive(Clone, Copy)]
struct Scaled {
    fraction: u64,
    exponent: i32,
}

impl Scaled {
    /// With the highest bit of the fraction set.
    fn normalized(self) -> Scaled {
        let shift = self.fraction.leading_zeros();
        Scaled {
            fraction: self.fraction << shift,
            exponent: self.exponent - shift as i32,
        }
    }

    /// With a smaller exponent that the fraction has room for.
    fn with_exponent(self, exponent: i32) -> Scaled {
        Scaled {
            fraction: self.fraction << (self.exponent - exponent),
            exponent,
        }
    }

    /// The product, rounded to 64 bits.
    fn times(self, other: Scaled) -> Scaled {
        let product = u128::from(self.fraction) * u128::from(other.fraction) + (1 << 63);
        Scaled {
            fraction: (product >> 64) as u64,
            exponent: self.exponent + other.exponent + 64,
        }
    }
}

/// Digits and decimal exponent of a positive number.
fn grisu2(number: f64) -> (String, i32) {
    const HIDDEN_BIT: u64 = 1 << 52;
    const BIAS: i32 = 1075;
    let bits = number.to_bits();
    let (biased, mantissa) = ((bits >> 52) as i32, bits & (HIDDEN_BIT - 1));
    let value = match biased {
        0 => Scaled {
            fraction: mantissa,
            exponent: 1 - BIAS,
        },
        _ => Scaled {
            fraction: mantissa + HIDDEN_BIT,
            exponent: biased - BIAS,
        },
    };
    // Half-way to the neighbours. At a power of two the lower one is only half as far.
    let above = Scaled {
        fraction: 2 * value.fraction + 1,
        exponent: value.exponent - 1,
    }
    .normalized();
    let below = if mantissa == 0 && biased > 1 {
        Scaled {
            fraction: 4 * value.fraction - 1,
            exponent: value.exponent - 2,
        }
    } else {
        Scaled {
            fraction: 2 * value.fraction - 1,
            exponent: value.exponent - 1,
        }
    };
    let below = below.with_exponent(above.exponent);

    let (power, decimal_exponent) = power_for(above.exponent);
    let value = value.normalized().times(power);
    // One unit less on both sides makes up for the rounding of the products.
    let above = above.times(power);
    let above = Scaled {
        fraction: above.fraction - 1,
        ..above
    };
    let below = below.times(power).fraction + 1;
    let generator = Generator {
        digits: Vec::with_capacity(17),
        distance: above.fraction - value.fraction,
        width: above.fraction - below,
    };
    let (digits, exponent) = generator.generate(above);
    (digits, exponent - decimal_exponent)
}

/// Makes the digits of a number within an interval.
struct Generator {
    digits: Vec<u8>,
    /// From the number to the upper end of the interval.
    distance: u64,
    /// From the lower to the upper end.
    width: u64,
}

impl Generator {
    /// The digits of the upper end of the interval, as few as stay in it, and their exponent.
    fn generate(mut self, above: Scaled) -> (String, i32) {
        // The exponent is between -60 and -32, so the whole part has 4 to 32 bits.
        let shift = -above.exponent as u32;
        let one = 1u64 << shift;
        let mut whole = above.fraction >> shift;
        let mut fraction = above.fraction & (one - 1);
        let mut remaining = whole.checked_ilog10().unwrap_or(0) as i32 + 1;
        while remaining > 0 {
            remaining -= 1;
            let unit = 10u64.pow(remaining as u32);
            self.digits.push((whole / unit) as u8);
            whole %= unit;
            let rest = (whole << shift) + fraction;
            if rest <= self.width {
                return (self.rounded(rest, unit << shift), remaining);
            }
        }
        let mut exponent = 0;
        loop {
            fraction *= 10;
            self.width *= 10;
            self.distance *= 10;
            exponent -= 1;
            self.digits.push((fraction >> shift) as u8);
            fraction &= one - 1;
            if fraction <= self.width {
                return (self.rounded(fraction, one), exponent);
            }
        }
    }

    /// Lowers the last digit as long as that brings it closer to the number. `rest` is what the digits lack to the
    /// upper end, `unit` what the last digit counts.
    fn rounded(mut self, mut rest: u64, unit: u64) -> String {
        let distance = self.distance;
        while rest < distance
            && self.width - rest >= unit
            && (rest + unit < distance || distance - rest > rest + unit - distance)
        {
            if let Some(last) = self.digits.last_mut() {
                *last -= 1;
            }
            rest += unit;
        }
        self.digits
            .into_iter()
            .map(|digit| char::from(b'0' + digit))
            .collect()
    }
}

/// A power of ten that brings a number of some binary exponent to one between -60 and -32, and its decimal exponent.
fn power_for(exponent: i32) -> (Scaled, i32) {
    const LOWEST_GOOD: i32 = -60;
    // ⌈(-60 - exponent - 1) · log₁₀ 2⌉
    let wanted = LOWEST_GOOD - exponent - 1;
    let decimal = wanted * 78913 / (1 << 18) + i32::from(wanted > 0);
    let index = (decimal - FIRST_POWER + STEP - 1) / STEP;
    let decimal = FIRST_POWER + STEP * index;
    // ⌊decimal · log₂ 10⌋ - 63
    let exponent = ((decimal * 1_741_647) >> 19) - 63;
    (
        Scaled {
            fraction: POWERS[index as usize],
            exponent,
        },
        decimal,
    )
}

/// The decimal exponent of the first power in [`POWERS`].
const FIRST_POWER: i32 = -300;
/// By how much the decimal exponents in [`POWERS`] grow.
const STEP: i32 = 8;

/// Powers of ten from 10⁻³⁰⁰ to 10³²⁴, every eighth, rounded to 64 bits of which the highest is set.
#[rustfmt::skip]
const POWERS: [u64; 79] = [
    0xAB70_FE17_C79A_C6CA, 0xFF77_B1FC_BEBC_DC4F, 0xBE56_91EF_416B_D60C, 0x8DD0_1FAD_907F_FC3C,
    0xD351_5C28_3155_9A83, 0x9D71_AC8F_ADA6_C9B5, 0xEA9C_2277_23EE_8BCB, 0xAECC_4991_4078_536D,
    0x823C_1279_5DB6_CE57, 0xC210_9436_4DFB_5637, 0x9096_EA6F_3848_984F, 0xD774_85CB_2582_3AC7,
    0xA086_CFCD_97BF_97F4, 0xEF34_0A98_172A_ACE5, 0xB238_67FB_2A35_B28E, 0x84C8_D4DF_D2C6_3F3B,
    0xC5DD_4427_1AD3_CDBA, 0x936B_9FCE_BB25_C996, 0xDBAC_6C24_7D62_A584, 0xA3AB_6658_0D5F_DAF6,
    0xF3E2_F893_DEC3_F126, 0xB5B5_ADA8_AAFF_80B8, 0x8762_5F05_6C7C_4A8B, 0xC9BC_FF60_34C1_3053,
    0x964E_858C_91BA_2655, 0xDFF9_7724_7029_7EBD, 0xA6DF_BD9F_B8E5_B88F, 0xF8A9_5FCF_8874_7D94,
    0xB944_7093_8FA8_9BCF, 0x8A08_F0F8_BF0F_156B, 0xCDB0_2555_6531_31B6, 0x993F_E2C6_D07B_7FAC,
    0xE45C_10C4_2A2B_3B06, 0xAA24_2499_6973_92D3, 0xFD87_B5F2_8300_CA0E, 0xBCE5_0864_9211_1AEB,
    0x8CBC_CC09_6F50_88CC, 0xD1B7_1758_E219_652C, 0x9C40_0000_0000_0000, 0xE8D4_A510_0000_0000,
    0xAD78_EBC5_AC62_0000, 0x813F_3978_F894_0984, 0xC097_CE7B_C907_15B3, 0x8F7E_32CE_7BEA_5C70,
    0xD5D2_38A4_ABE9_8068, 0x9F4F_2726_179A_2245, 0xED63_A231_D4C4_FB27, 0xB0DE_6538_8CC8_ADA8,
    0x83C7_088E_1AAB_65DB, 0xC45D_1DF9_4271_1D9A, 0x924D_692C_A61B_E758, 0xDA01_EE64_1A70_8DEA,
    0xA26D_A399_9AEF_774A, 0xF209_787B_B47D_6B85, 0xB454_E4A1_79DD_1877, 0x865B_8692_5B9B_C5C2,
    0xC835_53C5_C896_5D3D, 0x952A_B45C_FA97_A0B3, 0xDE46_9FBD_99A0_5FE3, 0xA59B_C234_DB39_8C25,
    0xF6C6_9A72_A398_9F5C, 0xB7DC_BF53_54E9_BECE, 0x88FC_F317_F222_41E2, 0xCC20_CE9B_D35C_78A5,
    0x9816_5AF3_7B21_53DF, 0xE2A0_B5DC_971F_303A, 0xA8D9_D153_5CE3_B396, 0xFB9B_7CD9_A4A7_443C,
    0xBB76_4C4C_A7A4_4410, 0x8BAB_8EEF_B640_9C1A, 0xD01F_EF10_A657_842C, 0x9B10_A4E5_E991_3129,
    0xE710_9BFB_A19C_0C9D, 0xAC28_20D9_623B_F429, 0x8044_4B5E_7AA7_CF85, 0xBF21_E440_03AC_DD2D,
    0x8E67_9C2F_5E44_FF8F, 0xD433_179D_9C8C_B841, 0x9E19_DB92_B4E3_1BA9,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notation_depends_on_the_size() {
        for (number, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (123456.789, "123456.789"),
            (1e14, "100000000000000.0"),
            (123456789012345.0, "123456789012345.0"),
            (1e15, "1e+15"),
            (1234567890123456.0, "1.234567890123456e+15"),
            (0.0001, "0.0001"),
            (0.00012, "0.00012"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (2.2250738585072014e-308, "2.2250738585072014e-308"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (f64::INFINITY, "null"),
            (f64::NAN, "null"),
        ] {
            assert_eq!(text(number), expected);
        }
    }

    /// What nlohmann's library writes where its digits are not the shortest.
    #[test]
    fn digits_are_those_of_the_library() {
        for (number, expected) in [
            (5922.18741, "5922.1874100000005"),
            (-2004.58587, "-2004.5858700000001"),
            (5497.96902, "5497.9690199999995"),
            (6.073388863058698e16, "6.0733888630586976e+16"),
            (718550356150148.2, "718550356150148.3"),
            (3.532791847884223e-150, "3.5327918478842233e-150"),
        ] {
            assert_eq!(text(number), expected);
        }
    }

    #[test]
    fn texts_read_back_as_the_number() {
        let mut bits = 0x0123_4567_89ab_cdefu64;
        for _ in 0..100_000 {
            bits = bits
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(bits);
            if number.is_finite() {
                assert_eq!(text(number).parse(), Ok(number));
            }
        }
    }
}
