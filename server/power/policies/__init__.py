"""Power policies: how loud every round is and with how much noise, one policy a file.

Each has what a run asks of it: a `server.power.causal_policy.CausalPolicy` for rounds that are
planned as they come, a `server.power.schedule.Schedule` of a
`server.power.schedule.PlanningProblem` where a preview wants the whole run, or shares of the
budget by weights alone. `server.power.catalogue` lists them.
"""
