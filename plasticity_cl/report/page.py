"""What every report says in the same words: the page's head, its style, and the definitions."""

from plasticity_cl.report.read import TWIN
from plasticity_cl.report.statistics import FEWEST, LAST, LEVEL, NEGLIGIBLE

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --muted: #5d5d63; --paper: #ffffff; --rule: #d9d9de;
  --card: #f2f2f5; --warn: #7d4400; --warn-card: #fff4e0; --link: #005a9c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9ec; --muted: #a5a5ad; --paper: #17171a; --rule: #3a3a40;
    --card: #26262b; --warn: #ffc266; --warn-card: #33270f; --link: #7cc0ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
h1, h2, h3, p, dd, dt, li, figcaption { overflow-wrap: anywhere; }
p, dl, ul, .warn, figcaption { max-width: 46rem; }
a { color: var(--link); }
.lead { font-size: 1.08rem; }
.warn { color: var(--warn); background: var(--warn-card); border-radius: .4rem; padding: .6rem .9rem; }
.warn ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin-bottom: 1rem; }
caption { text-align: left; padding-bottom: .4rem; width: min(46rem, 100vw - 2rem); }
caption, figcaption { color: var(--muted); font-size: .9rem; }
th, td { text-align: right; padding: .35rem .7rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
.texts th, .texts td, tbody th:first-child, td:first-child, thead tr:first-child th:first-child { text-align: left; }
tbody th:first-child, td:first-child, thead tr:first-child th:first-child { padding-left: 0; }
thead th { vertical-align: bottom; }
th { font-weight: 600; }
tbody th { position: sticky; left: 0; background: var(--paper); min-width: 7rem; max-width: 16rem; }
td small { color: var(--muted); white-space: nowrap; display: block; }
.name { white-space: nowrap; }
.long { white-space: normal; }
.chip { display: inline-block; width: .7em; height: .7em; border-radius: .2em; margin: 0 .45em 0 1px;
  box-shadow: 0 0 0 1px var(--muted); }
.verdicts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .6rem 1.2rem; max-width: none; }
.verdicts dt { font-weight: 600; max-width: 16rem; }
.verdicts dd { margin: 0; max-width: 42rem; }
.verdicts p { margin: 0 0 .3rem; }
.terms dt { font-weight: 600; margin-top: .7rem; }
.terms dd { margin: 0 0 0 1rem; }
figure { margin: 1.5rem 0; }
.cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(var(--cell), 100%), 1fr)); gap: .5rem; }
.cell { display: block; width: 100%; height: auto; overflow: hidden; }
img { display: block; width: 100%; height: auto; }
.raster { min-width: 40rem; border-radius: .4rem; }
@media (prefers-color-scheme: dark) { .raster { filter: invert(.9) hue-rotate(180deg); } }
figcaption { margin-top: .4rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
code { font-size: .92em; background: var(--card); border-radius: .25rem; padding: .1em .3em; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  tbody th { max-width: 8rem; }
  .verdicts { grid-template-columns: 1fr; gap: .2rem; }
  .verdicts dd { margin-bottom: .9rem; }
  th, td { padding: .3rem .45rem; }
}
"""

HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Plasticity and forgetting, told apart</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Plasticity and forgetting, told apart</h1>
<p class="lead">When a network gets worse on a stream of experiences, either it could no longer learn the later ones,
or it forgot the earlier ones. Each strategy is compared with its own fresh networks, which shows how much is which,
and with one common reference, which makes strategies comparable.</p>"""

DEFINITIONS = f"""
<h2 id="definitions">What the words mean</h2>
<p>Scores are accuracy, and in regression 1 / (2 − R²), bounded between 0 and 1, where 0.5 is what the mean of the
targets scores; or R² where that was asked for. Higher is better. For experience k of a stream:</p>
<dl class="terms">
<dt>S<sub>ref</sub>, common reference</dt>
<dd>The score on k of a fresh network of the baseline strategy (finetune unless another was chosen), trained on k
alone. It is the same for all strategies. For a target shift it is on {TWIN}.</dd>
<dt>S<sub>k</sub>, own fresh networks</dt>
<dd>The score on k of a network that starts anew and is trained on k alone, with the same strategy, data, epochs,
batch order and optimizer.</dd>
<dt>A<sub>kk</sub>, learned</dt>
<dd>The score on k right after training on k.</dd>
<dt>A<sub>Kk</sub>, left at the end</dt>
<dd>The score on k at the end of the stream.</dd>
<dt>Handicap, S<sub>ref</sub> − S<sub>k</sub></dt>
<dd>What the strategy costs a network that has seen nothing before. Negative where it helps such a network. A strategy
with a large handicap may lose little plasticity because it has little to lose.</dd>
<dt>Plasticity loss, S<sub>k</sub> − A<sub>kk</sub></dt>
<dd>What a fresh network would have learned and this one did not. It is a <em>net</em> deficit: what earlier
experiences help (transfer) is in it as well as the ability to learn that was lost. Where help outweighs loss it is
negative.</dd>
<dt>Forgetting, A<sub>kk</sub> − A<sub>Kk</sub></dt>
<dd>What was learned and is gone at the end. What was never learned cannot be forgotten, so little forgetting beside a
large plasticity loss is no sign of a good memory. For the last experience it is zero by definition. On a stream whose
old labels no longer hold it is shown, but is no damage, and counts nowhere.</dd>
<dt>Total, S<sub>ref</sub> − A<sub>Kk</sub></dt>
<dd>The sum of the three: S<sub>ref</sub> − A<sub>Kk</sub> = (S<sub>ref</sub> − S<sub>k</sub>) + (S<sub>k</sub> −
A<sub>kk</sub>) + (A<sub>kk</sub> − A<sub>Kk</sub>), exactly. Results of older versions have no common reference:
their total is S<sub>k</sub> − A<sub>Kk</sub>.</dd>
<dt>Chance</dt>
<dd>The score of the best constant prediction: the share of the most frequent class, or 0.5 of the bounded regression
score. A strategy whose learned score, less chance, has an interval that reaches zero is not ranked.</dd>
<dt>Training data and test data</dt>
<dd>On the data that was trained on, plasticity loss is lost trainability; on test data it is lost generalisation. The
two need not go together.</dd>
<dt>Means and intervals</dt>
<dd>Each run gives one number, its mean over all experiences (or, where it is said, over the last {LAST}); means are
over runs with different seeds, and every seed is drawn. Intervals are Student&rsquo;s t over these numbers at
{LEVEL:.0%}, from {FEWEST} seeds on; in a table they are widened (Bonferroni) so that all of them hold together. They
are exact for normally distributed seeds and too narrow where single seeds collapse, so look at the dots. Bands of
curves are for each experience alone.</dd>
<dt>Rank</dt>
<dd>Two strategies are told apart where the interval of their paired difference, seed by seed and widened for the
number of pairs, lies on one side of zero, and the difference is at least {NEGLIGIBLE}: less is called nothing. A
rank ends where all strategies above are told apart from all below; within a rank some may be. Best, least and most are
said of nothing else.</dd>
<dt>Diverged and unfinished runs</dt>
<dd>They are named, drawn as far as they got, and enter no mean: what is left may look better than the strategy
is.</dd>
</dl>"""
