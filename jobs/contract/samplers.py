"""Notes for choosing a sampler: the cost of each, and when to choose it. Plain data.

Results for few steps and large scales were measured on the demo stack (docs/samplers.md). Lu et al. 2022 show that
second-order solvers are worse at scales of 8 and more on large models.
"""

from pydantic import Field

from jobs.contract.announced import Announced


class SamplerNote(Announced):
    """Notes for choosing a sampler."""

    name: str
    title: str
    source: str
    order: int = Field(description="of convergence in the number of steps")
    noise: str = Field(description="when it draws noise beyond the initial noise")
    evaluations_per_step: int = Field(description="of the network, and of the classifier where a step is guided")
    cost: str
    choose_when: str


SAMPLER_NOTES = (
    SamplerNote(
        name="ddpm",
        title="DDPM",
        source="Ho et al. 2020; guided by Algorithm 1 of Dhariwal and Nichol 2021",
        order=1,
        noise="every step but the last",
        evaluations_per_step=1,
        cost="1 network evaluation a step",
        choose_when="The published figures were measured with it (250 steps). For many steps: its fresh noise corrects "
        "earlier errors of the network. On the demo stack dynamic thresholding beats clipping at every scale.",
    ),
    SamplerNote(
        name="ddim",
        title="DDIM",
        source="Song et al. 2021; guided by Algorithm 2 of Dhariwal and Nichol 2021",
        order=1,
        noise="where eta is above 0",
        evaluations_per_step=1,
        cost="1 network evaluation a step",
        choose_when="25 to 100 steps, and images that depend only on the seed. Extreme guidance scales (demo "
        "stack: 64 and more, at 10 steps 16 and more) need dynamic thresholding.",
    ),
    SamplerNote(
        name="dpmpp_2m",
        title="DPM++ 2M",
        source="DPM-Solver++(2M), Lu et al. 2022; guided by Algorithm 2 of Dhariwal and Nichol 2021",
        order=2,
        noise="never",
        evaluations_per_step=1,
        cost="1 network evaluation a step",
        choose_when="10 to 20 steps: on the demo stack 10 are as good as ddim's 25. At guidance scales of 8 and more "
        "large models are known to do better with ddim; the demo stack does not, but needs dynamic thresholding from "
        "64 on, at 10 steps from 16 on.",
    ),
    SamplerNote(
        name="heun",
        title="Heun",
        source="Karras et al. 2022, in log-SNR; guided by Algorithm 2 of Dhariwal and Nichol 2021",
        order=2,
        noise="never",
        evaluations_per_step=2,
        cost="2 network evaluations a step, 1 for the last",
        choose_when="Accuracy at the cost of time. It uses no memory of earlier steps, so it suits time grids and "
        "guidance that change abruptly.",
    ),
)
