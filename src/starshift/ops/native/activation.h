// SPDX-License-Identifier: Apache-2.0
// Activations on vectors: value, and gradient at x applied to g. NaN and infinity come out as from torch.
//
//     with_activation(code, [&](auto act) { using Act = decltype(act); ... Act::forward(x) ... });
//
// compiles the body once for each. Codes stand in the order of starshift.ops.ACTIVATIONS.
#pragma once
#include "simd.h"

// e to the r for |r| <= ln 2 / 2: 1 + r + r^2 P(r), P fitted to a relative error of 3e-9.
INLINE vf exp_fraction(vf r) {
    vf p = r * 1.38146132e-3f + 8.36870993e-3f;
    p = p * r + 4.16683874e-2f;
    p = p * r + 1.66665207e-1f;
    p = p * r + 4.99999935e-1f;
    return p * (r * r) + r + 1.0f;
}

// e to the x, to about 1 unit in the last place; infinity above 88.7, denormal and then zero below -87.3.
INLINE vf vexp(vf x) {
    x = select(x > 89.0f, broadcast(89.0f), x);
    x = select(x < -104.0f, broadcast(-104.0f), x);
    const vf round = broadcast(12582912.0f);  // 1.5 * 2**23: adding it leaves no place for a fraction
    vf n = (x * 1.44269504f + round) - round;
    vf r = x - n * 0.693145752f;  // ln 2 in two parts, the first short enough that its product is exact
    r = r - n * 1.42860682e-6f;
    vf p = exp_fraction(r);
    vi k = __builtin_convertvector(n, vi), half = k >> 1;  // 2**k in two factors: k reaches 128 and -150
    return p * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
}

struct None {
    static INLINE vf forward(vf x) { return x; }
    static INLINE vf backward(vf g, vf) { return g; }
};

struct Relu {
    static INLINE vf forward(vf x) { return vmax0(x); }
    static INLINE vf backward(vf g, vf x) { return select(x <= 0.0f, (vf){}, g); }
};

struct Relu6 {
    static INLINE vf forward(vf x) { return vmin(vmax0(x), 6.0f); }
    static INLINE vf backward(vf g, vf x) { return select((x > 0.0f) & (x < 6.0f), g, (vf){}); }
};

// e to the x for x up to 0, where one factor holds 2**k; zero below -87.
INLINE vf vexp_negative(vf x) {
    vf bounded = select(x < -87.0f, broadcast(-87.0f), x);
    const vf round = broadcast(12582912.0f);
    vf n = (bounded * 1.44269504f + round) - round;
    vf r = bounded - n * 0.693145752f;
    vf e = exp_fraction(r - n * 1.42860682e-6f) * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
    return select(x < -87.0f, (vf){}, e);
}

// x times the normal distribution's cdf. Below zero cdf(-t) = density(t) * ratio(t), and the ratio (Mills') is smooth:
// u P(u) with u = 1 / (1 + 0.35 t), P fitted to a relative error of 3e-8 on 0 <= t <= 14.
struct Gelu {
    static INLINE vf forward(vf x) { return x * parts(x).cdf; }
    static INLINE vf backward(vf g, vf x) {
        Parts at = parts(x);
        return g * (at.cdf + x * at.density);
    }

  private:
    struct Parts {
        vf cdf, density;
    };
    static INLINE Parts parts(vf x) {
        vf t = select(x < 0.0f, -x, x);
        vf u = 1.0f / (1.0f + 0.35f * t);
        vf e = vexp_negative(-0.5f * t * t);
        vf p = u * -2.915786402e-2f + 1.440308246e-1f;
        p = p * u - 2.558388295e-1f;
        p = p * u + 1.593195204e-1f;
        p = p * u - 2.321224914e-2f;
        p = p * u + 1.055524646e-1f;
        p = p * u + 1.198212957e-1f;
        p = p * u + 1.398635145e-1f;
        p = p * u + 1.396213069e-1f;
        vf tail = p * u * e;
        return {select(x < 0.0f, tail, 1.0f - tail), e * 0.398942280f};
    }
};

struct Hardswish {
    static INLINE vf forward(vf x) { return x * vmin(vmax0(x + 3.0f), 6.0f) * (1.0f / 6); }
    static INLINE vf backward(vf g, vf x) {
        vf slope = select(x < 3.0f, g * (x * (1.0f / 3) + 0.5f), select(x != x, x, g));
        return select(x <= -3.0f, (vf){}, slope);
    }
};

struct Silu {
    static INLINE vf forward(vf x) { return x / (1.0f + vexp(-x)); }
    static INLINE vf backward(vf g, vf x) {
        vf sigmoid = 1.0f / (1.0f + vexp(-x));
        return g * (sigmoid * (1.0f + x * (1.0f - sigmoid)));
    }
};

struct LeakyRelu {
    static INLINE vf forward(vf x) { return select(x > 0.0f, x, x * 0.01f); }
    static INLINE vf backward(vf g, vf x) { return select(x > 0.0f, g, g * 0.01f); }
};

template <class F>
inline void with_activation(int64_t code, const F& f) {
    switch (code) {
        case 0: return f(None{});
        case 1: return f(Relu{});
        case 2: return f(Relu6{});
        case 3: return f(Gelu{});
        case 4: return f(Hardswish{});
        case 5: return f(Silu{});
        case 6: return f(LeakyRelu{});
    }
}
