//! The few statistics that a judgement needs. All are total: no input makes them panic or give NaN.

use std::collections::BTreeMap;

/// Makes the median absolute deviation an estimate of the standard deviation of a normal distribution.
const MAD_SCALE: f64 = 1.4826;

/// Middle and spread of a feature, both of them robust: half of the values may be anything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Scaled median absolute deviation, at least the floor.
    pub scale: f64,
}

impl Spread {
    /// Of `values`, with a spread of at least `floor`, since a few runs may be equal by chance.
    pub fn of(values: &[f64], floor: f64) -> Spread {
        let middle = median(values);
        let deviations: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
        Spread { median: middle, scale: (MAD_SCALE * median(&deviations)).max(floor) }
    }

    /// How many spreads `value` lies above the middle; 0 when it lies below.
    pub fn above(&self, value: f64) -> f64 {
        ((value - self.median) / self.scale).max(0.0)
    }
}

/// The median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// A count on the scale on which it is compared.
pub fn log(count: u64) -> f64 {
    (count as f64).ln_1p()
}

/// How surprising at least `count` of a Poisson variable of mean `mean` is, as the deviation of a normal variable that would be about as surprising.
pub fn surprise(count: u64, mean: f64) -> f64 {
    if count as f64 <= mean {
        return 0.0;
    }
    // ln P(X >= c) = -m + c ln m - ln c! + ln(1 + m/(c+1) + m²/((c+1)(c+2)) + ...); the ratio is below 1, so the series ends.
    let mut series = 1.0;
    let mut term = 1.0;
    for next in count + 1..count + 200 {
        term *= mean / next as f64;
        series += term;
        if term < 1e-12 {
            break;
        }
    }
    let ln_factorial: f64 = (2..=count).map(|n| (n as f64).ln()).sum();
    let ln_p = -mean + count as f64 * mean.ln() - ln_factorial + series.ln();
    (-2.0 * ln_p.min(0.0)).sqrt()
}

/// Jensen-Shannon divergence of two mixes of counts, between 0 (the same) and ln 2 (nothing in common).
pub fn divergence(one: &BTreeMap<String, u64>, other: &BTreeMap<String, u64>) -> f64 {
    let total = |counts: &BTreeMap<String, u64>| counts.values().map(|count| *count as f64).sum::<f64>();
    let (one_total, other_total) = (total(one), total(other));
    if one_total == 0.0 || other_total == 0.0 {
        return 0.0;
    }
    let part = |counts: &BTreeMap<String, u64>, name: &String, total: f64| {
        counts.get(name).map_or(0.0, |count| *count as f64 / total)
    };
    let names = one.keys().chain(other.keys().filter(|name| !one.contains_key(*name)));
    let terms = names.map(|name| {
        let (p, q) = (part(one, name, one_total), part(other, name, other_total));
        let middle = (p + q) / 2.0;
        let term = |p: f64| if p > 0.0 { p * (p / middle).ln() } else { 0.0 };
        (term(p) + term(q)) / 2.0
    });
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-3, "{one} {other}");
    }

    #[test]
    fn half_of_the_values_may_be_anything() {
        let calm = Spread::of(&[10.0, 11.0, 9.0, 10.5, 9.5], 0.1);
        let wild = Spread::of(&[10.0, 11.0, 9.0, 1e9, -1e9], 0.1);
        near(calm.median, 10.0);
        near(wild.median, 10.0);
        assert!(wild.scale < 2.0, "{wild:?}");
        near(Spread::of(&[5.0; 9], 0.25).above(6.0), 4.0);
        near(Spread::of(&[5.0; 9], 0.25).above(4.0), 0.0);
    }

    #[test]
    fn surprise_is_that_of_the_poisson_distribution() {
        // P(X >= 1) = 1 - e^-0.1 = 0.09516; P(X >= 3 | 1) = 0.0803.
        near(surprise(1, 0.1), (-2.0 * 0.095_163_f64.ln()).sqrt());
        near(surprise(3, 1.0), (-2.0 * 0.080_301_f64.ln()).sqrt());
        near(surprise(3, 10.0), 0.0);
        assert!(surprise(4096, 0.01).is_finite());
        for mean in [0.01, 0.5, 3.0, 40.0] {
            let series: Vec<f64> = (0..200).map(|count| surprise(count, mean)).collect();
            assert!(series.is_sorted(), "more is more surprising, {mean}");
        }
    }

    #[test]
    fn divergence_has_its_bounds() {
        let mix = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let (one, double) = (mix(&[("read", 30), ("write", 10)]), mix(&[("read", 60), ("write", 20)]));
        near(divergence(&one, &double), 0.0);
        near(divergence(&one, &mix(&[("ptrace", 7)])), std::f64::consts::LN_2);
        near(divergence(&one, &BTreeMap::new()), 0.0);
    }
}
