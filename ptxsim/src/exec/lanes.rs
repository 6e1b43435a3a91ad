//! Functions of lanes, applied to a warp's registers.

use super::warp::Warp;
use crate::kernel::Function;

impl Warp {
    /// Lanes in which a comparison holds.
    #[inline]
    pub(super) fn compare(&self, f: &Function, s: &[u32; 2]) -> u32 {
        let (a, b) = (s[0] as usize, s[1] as usize);
        match f {
            Function::Compare(f) => f(&self.w[a], &self.w[b]),
            Function::CompareD(f) => f(&self.d[a], &self.d[b]),
            Function::Test(f) => f(&self.w[a]),
            Function::TestD(f) => f(&self.d[a]),
            _ => 0,
        }
    }

    /// d = f(s …) in the lanes that execute it.
    #[inline]
    pub(super) fn apply(&mut self, f: &Function, d: u32, s: &[u32; 4], lanes: u32) {
        let [a, b, c, e] = s.map(|i| i as usize);
        let mut word = [0; 32];
        let mut double = [0; 32];
        let (w, x) = (&self.w, &self.d);
        let wide = match f {
            Function::W1(f) => {
                f(&w[a], &mut word);
                false
            }
            Function::W2(f) => {
                f(&w[a], &w[b], &mut word);
                false
            }
            Function::W3(f) => {
                f(&w[a], &w[b], &w[c], &mut word);
                false
            }
            Function::W4(f) => {
                f(&w[a], &w[b], &w[c], &w[e], &mut word);
                false
            }
            Function::WfromD(f) => {
                f(&x[a], &mut word);
                false
            }
            Function::D1(f) => {
                f(&x[a], &mut double);
                true
            }
            Function::D2(f) => {
                f(&x[a], &x[b], &mut double);
                true
            }
            Function::D3(f) => {
                f(&x[a], &x[b], &x[c], &mut double);
                true
            }
            Function::DfromW(f) => {
                f(&w[a], &mut double);
                true
            }
            Function::DfromWW(f) => {
                f(&w[a], &w[b], &mut double);
                true
            }
            Function::DfromWWD(f) => {
                f(&w[a], &w[b], &x[c], &mut double);
                true
            }
            Function::DfromDW(f) => {
                f(&x[a], &w[b], &mut double);
                true
            }
            Function::DfromDWW(f) => {
                f(&x[a], &w[b], &w[c], &mut double);
                true
            }
            Function::DfromDDWW(f) => {
                f(&x[a], &x[b], &w[c], &w[e], &mut double);
                true
            }
            Function::Compare(_) | Function::CompareD(_) | Function::Test(_) | Function::TestD(_) => {
                let holds = self.compare(f, &[s[0], s[1]]);
                self.put_p(d, holds, lanes);
                return;
            }
        };
        if wide {
            self.put_d(d, &double, lanes);
        } else {
            self.put_w(d, &word, lanes);
        }
    }
}
