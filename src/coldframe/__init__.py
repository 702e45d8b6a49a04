"""coldframe looks into a Windows guest from outside: any page of any process, whatever state it is in."""
