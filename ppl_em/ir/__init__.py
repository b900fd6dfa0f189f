"""Frozen values that describe a traced program: factors, sites, latents, plates, parameters. No Pyro in here."""

from ppl_em.ir.factor import Factor
from ppl_em.ir.graph import Argument, Latent, Link, Parameter, Plate, Program, Site, TimeAxis

__all__ = ["Argument", "Factor", "Latent", "Link", "Parameter", "Plate", "Program", "Site", "TimeAxis"]
