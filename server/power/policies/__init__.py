"""Power policies: how loud every round is and with how much noise, one policy a file.

Each has a ``NAME`` and a function that makes a `server.power.schedule.Schedule` of a
`server.power.schedule.PlanningProblem`, checked against its limits before it is handed out.
"""
