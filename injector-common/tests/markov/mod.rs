//! Finite Markov chains: the exact long-run behaviour of a loss model.

/// The two-sided quantile of the normal distribution that a correct implementation exceeds once in 10^6.
pub const Z: f64 = 4.8917;

/// A chain with one recurrent class, and its stationary distribution.
pub struct Chain {
    transition: Vec<Vec<f64>>,
    stationary: Vec<f64>,
}

impl Chain {
    /// From the rows of the transition matrix.
    pub fn new(transition: Vec<Vec<f64>>) -> Self {
        let size = transition.len();
        for row in &transition {
            assert!(
                (row.iter().sum::<f64>() - 1.0).abs() < 1e-12,
                "a row does not sum to 1: {row:?}"
            );
            assert!(row.iter().all(|&entry| entry >= 0.0), "a negative probability: {row:?}");
        }
        // pi = pi P and sum(pi) = 1 give pi (I - P + E) = 1, E all ones; transposed, to solve it.
        let system = (0..size)
            .map(|i| (0..size).map(|j| identity(i, j) - transition[j][i] + 1.0).collect())
            .collect();
        let stationary = solve(system, vec![1.0; size]);
        Self { transition, stationary }
    }

    /// The long-run share of steps that end in each state.
    pub fn stationary(&self) -> &[f64] {
        &self.stationary
    }

    /// The long-run mean of a reward that is paid on entering a state.
    pub fn mean(&self, reward: &[f64]) -> f64 {
        dot(&self.stationary, reward)
    }

    /// The bound on the deviation of the sum of rewards over `steps` steps from its mean.
    ///
    /// With h the solution of Poisson's equation (I - P) h = reward - mean, the sum differs from a
    /// martingale by h at the start minus h at the end, and the martingale is normal in the limit.
    /// So both the correlation of the steps and the start from a fixed state are accounted for.
    pub fn bound(&self, reward: &[f64], steps: usize) -> f64 {
        let h = self.deviation(reward);
        let extreme = h.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
        Z * (self.asymptotic_variance(reward) * steps as f64).max(0.0).sqrt() + 2.0 * extreme
    }

    /// The variance of a sum of rewards, per step, in the limit of many steps (Kemeny and Snell:
    /// "Finite Markov Chains", by the fundamental matrix).
    pub fn asymptotic_variance(&self, reward: &[f64]) -> f64 {
        let mean = self.mean(reward);
        let h = self.deviation(reward);
        self.stationary
            .iter()
            .zip(reward)
            .zip(&h)
            .map(|((share, value), h)| share * (value - mean) * (2.0 * h - (value - mean)))
            .sum()
    }

    /// The chain whose states are the possible steps of this one, and these steps.
    pub fn steps(&self) -> (Self, Vec<(usize, usize)>) {
        let size = self.transition.len();
        let steps: Vec<(usize, usize)> = (0..size)
            .flat_map(|from| (0..size).map(move |to| (from, to)))
            .filter(|&(from, to)| self.transition[from][to] > 0.0)
            .collect();
        let transition = steps
            .iter()
            .map(|&(_, at)| {
                let chance = |&(from, to): &(usize, usize)| {
                    if from == at { self.transition[from][to] } else { 0.0 }
                };
                steps.iter().map(chance).collect()
            })
            .collect();
        (Self::new(transition), steps)
    }

    /// The solution of Poisson's equation for `reward` with mean 0.
    fn deviation(&self, reward: &[f64]) -> Vec<f64> {
        let size = self.transition.len();
        let mean = self.mean(reward);
        let system = (0..size)
            .map(|i| {
                (0..size)
                    .map(|j| identity(i, j) - self.transition[i][j] + self.stationary[j])
                    .collect()
            })
            .collect();
        solve(system, reward.iter().map(|value| value - mean).collect())
    }
}

fn identity(i: usize, j: usize) -> f64 {
    if i == j { 1.0 } else { 0.0 }
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

/// Solves `system` times x = `right` by Gaussian elimination with partial pivoting.
fn solve(mut system: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let size = right.len();
    for column in 0..size {
        let pivot = (column..size)
            .max_by(|&a, &b| system[a][column].abs().total_cmp(&system[b][column].abs()))
            .expect("there is at least one row left");
        system.swap(column, pivot);
        right.swap(column, pivot);
        assert!(system[column][column].abs() > 1e-12, "the chain has two recurrent classes");
        for row in column + 1..size {
            let factor = system[row][column] / system[column][column];
            let (above, below) = system.split_at_mut(row);
            for (entry, pivot_entry) in below[0].iter_mut().zip(&above[column]).skip(column) {
                *entry -= factor * pivot_entry;
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..size).rev() {
        let known = dot(&system[row][row + 1..], &right[row + 1..]);
        right[row] = (right[row] - known) / system[row][row];
    }
    right
}
